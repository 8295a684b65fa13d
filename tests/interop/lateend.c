/* Makes a moment of QEMU's long: between what a machine that migrates sends last, so that the other one says that all
   has arrived, and the end of its own migration, until which it refuses to go on. Where processors are busy it is as
   long by itself, now and then.

   The thread that has sent to where a state goes, a UNIX socket of that name or TCP, sleeps whenever it has given a lock
   back from then on. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { SLEEP_US = 50000 };

static ssize_t (*real_sendmsg)(int, const struct msghdr *, int);
static int (*real_unlock)(pthread_mutex_t *);
static __thread int migrates;

__attribute__((constructor)) static void find(void) {
  real_sendmsg = (ssize_t(*)(int, const struct msghdr *, int))dlsym(RTLD_NEXT, "sendmsg");
  real_unlock = (int (*)(pthread_mutex_t *))dlsym(RTLD_NEXT, "pthread_mutex_unlock");
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags) {
  struct sockaddr_un peer = {0};
  socklen_t length = sizeof peer - 1;
  ssize_t sent = real_sendmsg(fd, message, flags);
  if (getpeername(fd, (struct sockaddr *)&peer, &length) == 0)
    migrates |= peer.sun_family != AF_UNIX || strstr(peer.sun_path, ".state") != NULL;
  return sent;
}

int pthread_mutex_unlock(pthread_mutex_t *mutex) {
  if (real_unlock == NULL) /* somebody else's constructor */
    find();
  int result = real_unlock(mutex);
  if (migrates)
    usleep(SLEEP_US);
  return result;
}
