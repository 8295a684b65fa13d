/* Repairs two faults of QEMU 7.2 that keep its COLO from working under TCG. Tests preload it into both machines.

   At a checkpoint memory_global_after_dirty_log_sync() has every vCPU flush its TLB, waiting on the big lock that its
   caller does not hold: from then on the COLO thread owns a lock that it waits for. And where dirty bits are cleared
   word by word, entries of the TLB that write without marking memory dirty are left in place, so that pages are lost.

   In its place: every vCPU is asked to flush, which it does before it executes guest code again, and is waited for only
   where the big lock is held. Says so and ends the process where a symbol is missing: then it would repair nothing. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static void *(*get_cpu)(int);
static void (*flush)(void *);
static void (*ask)(void *, void (*)(void *, uint64_t), uint64_t);
static void (*run_on)(void *, void (*)(void *, uint64_t), uint64_t);
static _Bool (*locked)(void);

/* In the vCPU's own thread: QEMU 10 flushes at once, whoever calls, and a vCPU that executes meanwhile crashes. */
static void flush_own(void *cpu, uint64_t data) {
  (void)data;
  flush(cpu);
}

static void nothing(void *cpu, uint64_t data) {
  (void)cpu;
  (void)data;
}

static void after_sync(void) {
  void *cpu;
  for (int i = 0; (cpu = get_cpu(i)) != NULL; i++) {
    ask(cpu, flush_own, 0);
    if (locked())
      run_on(cpu, nothing, 0);
  }
}

static void *symbol(const char *name) {
  void *found = dlsym(RTLD_DEFAULT, name);
  if (found == NULL) {
    fprintf(stderr, "tcgcolo: this QEMU does not export %s: it cannot be repaired\n", name);
    exit(1);
  }
  return found;
}

__attribute__((constructor)) static void repair(void) {
  char self[256] = "";
  if (readlink("/proc/self/exe", self, sizeof self - 1) < 0 || strstr(self, "qemu-system") == NULL)
    return;
  uint8_t *entry = symbol("memory_global_after_dirty_log_sync");
  get_cpu = (void *(*)(int))symbol("qemu_get_cpu");
  flush = (void (*)(void *))symbol("tlb_flush");
  ask = (void (*)(void *, void (*)(void *, uint64_t), uint64_t))symbol("async_run_on_cpu");
  run_on = (void (*)(void *, void (*)(void *, uint64_t), uint64_t))symbol("run_on_cpu");
  /* Called so since 8.2. */
  locked = (_Bool(*)(void))(dlsym(RTLD_DEFAULT, "bql_locked") ? symbol("bql_locked") : symbol("qemu_mutex_iothread_locked"));
  uint8_t jump[12] = {0x48, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xe0}; /* movabs $after_sync, %rax; jmp *%rax */
  void (*target)(void) = after_sync;
  memcpy(jump + 2, &target, 8);
  uintptr_t page = (uintptr_t)entry & ~(uintptr_t)4095;
  if (mprotect((void *)page, 8192, PROT_READ | PROT_WRITE | PROT_EXEC) != 0) {
    perror("tcgcolo");
    exit(1);
  }
  memcpy(entry, jump, sizeof jump);
  mprotect((void *)page, 8192, PROT_READ | PROT_EXEC);
}
