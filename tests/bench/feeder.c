/* Feeds a comparator as two machines that run the same server would, and checks what comes out.

     feeder PRIMARY SECONDARY OUT CONNECTIONS PAYLOAD WINDOW CHUNK VNET TIMESTAMPS REQUEST_EVERY

   The first three are descriptors of connected stream sockets. Both machines send the same TCP payload with the same
   numbers, in frames that differ as those of two machines do: other IP identifications (and so other header checksums)
   and, with TIMESTAMPS, another clock in the timestamps option. Payload differs from frame to frame. Every field is
   a function of (machine, connection, number of the frame), so that the reader knows what must come out: the primary's
   frame, byte for byte. TCP checksums are left zero; with VNET they are said to be partial.

   At most WINDOW frames are outstanding; CHUNK of the primary's are written at once, and then the secondary's.
   Connections take turns. With REQUEST_EVERY the acknowledgement number grows by 100 at every so many frames of a
   connection.

   Commands on standard input, one a line; the answer to each is one line of JSON:

     open        both machines' SYN-ACK of every connection
     run MS      as many frames as go through in MS milliseconds, and the wait for the last of them
     ping MS     the same with one frame outstanding, each one's round trip measured

   The end of standard input ends the program. What makes no progress for PATIENCE seconds is given up. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum {
  PATIENCE = 10,
  POOL = 1 << 18,              /* bytes of noise that payloads are cut from */
  MAX_PAYLOAD = 65000,
  MAX_HEADERS = 8 + 12 + 14 + 20 + 60,
  MAX_CONNECTIONS = 16384,
  READ_BUFFER = 1 << 20,
  MAX_SAMPLES = 1 << 22,
  FIRST_PORT = 10000,
  REQUEST_BYTES = 100,
  VNET_BYTES = 12,
  ETHERNET = 14,
  IPV4 = 20,
};

enum { PRIMARY, SECONDARY };

struct connection {
  uint64_t sent, released;         /* numbers of the next frames: 0 is the SYN-ACK's */
  uint64_t sent_count, out_count;  /* what went in and came out, and the sums of their numbers: */
  uint64_t sent_sum, out_sum;      /* equal only when each came out once */
};

static int sockets[3];
static uint32_t connections, payload, window, chunk, request_every;
static bool vnet, timestamps;
static size_t headers;             /* bytes in front of the payload, prefix included */

static unsigned char pool[POOL + MAX_PAYLOAD];
static struct connection *table;
static uint32_t turn;              /* the connection whose turn it is */
static unsigned char *chunks[2];   /* one chunk of each machine, and how long it is */
static size_t lengths[2];

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t progress = PTHREAD_COND_INITIALIZER;
static uint64_t sent, released;    /* of one command, under the lock; `released` is written by the reader alone */
static bool complete, stalled;     /* nothing will be sent after `sent`; given up */

static uint64_t disorder, altered; /* frames that were not the next of their connection, that are not the primary's */
static uint64_t last_ns;           /* when the last frame came out */

static uint64_t now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static uint64_t mix(uint64_t x) { /* splitmix64's finaliser: neighbours become strangers */
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
  x = (x ^ x >> 27) * 0x94d049bb133111ebu;
  return x ^ x >> 31;
}

static void put16(unsigned char *at, uint32_t value) {
  at[0] = (unsigned char)(value >> 8);
  at[1] = (unsigned char)value;
}

static void put32(unsigned char *at, uint32_t value) {
  value = htonl(value);
  memcpy(at, &value, 4);
}

static uint32_t get16(const unsigned char *at) { return (uint32_t)at[0] << 8 | at[1]; }

static uint32_t get32(const unsigned char *at) {
  uint32_t value;
  memcpy(&value, at, 4);
  return ntohl(value);
}

/* ------------------------------------------------------------------------------------------------------- the frames */

/* The first connection's numbers soon wrap. */
static uint32_t initial(uint32_t connection) { return connection ? (uint32_t)mix(connection) : 0xffff0000u; }

static uint32_t seq_of(uint32_t connection, uint64_t number) {
  return initial(connection) + (number ? 1 + (uint32_t)((number - 1) * payload) : 0);
}

static const unsigned char *payload_of(uint32_t connection, uint64_t number) {
  return pool + mix((uint64_t)connection << 40 ^ number) % POOL;
}

static unsigned char *put_vnet(unsigned char *at, bool syn) {
  memset(at, 0, VNET_BYTES);
  at[0] = 1;               /* VIRTIO_NET_HDR_F_NEEDS_CSUM */
  at[6] = ETHERNET + IPV4; /* csum_start, little-endian as a modern device's */
  at[8] = 16;              /* csum_offset */
  if (!syn && payload > 1448) {
    at[1] = 1; /* VIRTIO_NET_HDR_GSO_TCPV4 */
    at[2] = (unsigned char)(ETHERNET + IPV4 + 20 + (timestamps ? 12 : 0));
    at[4] = 1448 & 0xff;
    at[5] = 1448 >> 8;
  }
  return at + VNET_BYTES;
}

static unsigned char *put_ethernet(unsigned char *at) {
  memcpy(at, "\x52\x54\x00\x00\x00\x02\x52\x54\x00\x00\x00\x01\x08\x00", ETHERNET);
  return at + ETHERNET;
}

static unsigned char *put_ipv4(unsigned char *at, int machine, uint32_t connection, uint64_t number, size_t length) {
  /* Each machine counts for each connection from a number of its own; the two never meet. */
  uint32_t id = (uint32_t)(mix(connection) + number) * 2 + (machine == SECONDARY ? 0x4001 : 0);
  uint32_t sum = 0;
  at[0] = 0x45;
  at[1] = 0;
  put16(at + 2, (uint32_t)length);
  put16(at + 4, id);
  put16(at + 6, 0x4000); /* DF */
  at[8] = 64;
  at[9] = IPPROTO_TCP;
  put16(at + 10, 0);
  put32(at + 12, 0x0a000001);                                    /* 10.0.0.1, the server */
  put32(at + 16, 0x0a010000 | connection);                       /* 10.1.x.y, a client */
  for (int i = 0; i < IPV4; i += 2)
    sum += get16(at + i);
  sum = (sum & 0xffff) + (sum >> 16);
  put16(at + 10, ~(sum + (sum >> 16)));
  return at + IPV4;
}

static unsigned char *put_timestamps(unsigned char *at, int machine, uint32_t connection, uint64_t number) {
  uint32_t clock = (uint32_t)mix(machine == SECONDARY ? ~(uint64_t)0 : 1u << 31) + (uint32_t)(number / 16);
  at[0] = 8;
  at[1] = 10;
  put32(at + 2, clock);
  put32(at + 6, (uint32_t)mix(connection) + (uint32_t)(number / 64));
  return at + 10;
}

static unsigned char *put_options(unsigned char *at, int machine, uint32_t connection, uint64_t number, bool syn) {
  if (syn) { /* MSS, SACK-permitted, [timestamps,] NOP, window scale 7 */
    memcpy(at, "\x02\x04\x05\xb4\x04\x02", 6);
    at += 6;
  }
  if (syn || timestamps) {
    if (!syn || !timestamps) {
      at[0] = at[1] = 1;
      at += 2;
    }
    if (timestamps)
      at = put_timestamps(at, machine, connection, number);
  }
  if (syn) {
    memcpy(at, "\x01\x03\x03\x07", 4);
    at += 4;
  }
  return at;
}

/* Everything in front of the payload; returns its length. */
static size_t put_headers(unsigned char *frame, int machine, uint32_t connection, uint64_t number) {
  bool syn = number == 0;
  unsigned char *at = frame + (vnet ? 8 : 4), *start = at, *ip, *tcp;
  uint32_t requests = request_every ? (uint32_t)(number / request_every) : 0;
  size_t length;
  if (vnet)
    at = put_vnet(at, syn);
  ip = put_ethernet(at);
  tcp = ip + IPV4;
  at = put_options(tcp + 20, machine, connection, number, syn);
  length = (size_t)(at - ip) + (syn ? 0 : payload);
  put_ipv4(ip, machine, connection, number, length);
  put16(tcp, 80);
  put16(tcp + 2, FIRST_PORT + connection);
  put32(tcp + 4, seq_of(connection, number));
  put32(tcp + 8, (uint32_t)mix(~connection) + requests * REQUEST_BYTES);
  tcp[12] = (unsigned char)((at - tcp) / 4 << 4);
  tcp[13] = syn ? 0x12 : 0x18; /* SYN ACK, PSH ACK */
  put16(tcp + 14, 502);
  put32(tcp + 16, 0); /* checksum, urgent pointer */
  put32(frame, (uint32_t)(ip - start) + (uint32_t)length);
  if (vnet)
    put32(frame + 4, VNET_BYTES);
  return (size_t)(at - frame);
}

static size_t put_frame(unsigned char *at, int machine, uint32_t connection, uint64_t number) {
  size_t length = put_headers(at, machine, connection, number);
  if (!number)
    return length;
  memcpy(at + length, payload_of(connection, number), payload);
  return length + payload;
}

/* ------------------------------------------------------------------------------------------------------ what comes out */

/* Which frame of its connection this is, from its sequence number, which may have wrapped. */
static uint64_t number_of(const struct connection *state, uint32_t connection, const unsigned char *tcp) {
  int32_t ahead;
  if (tcp[13] & 2)
    return 0;
  ahead = (int32_t)(get32(tcp + 4) - seq_of(connection, state->released ? state->released : 1));
  return (state->released ? state->released : 1) + (uint64_t)(int64_t)(ahead / (int32_t)payload);
}

static void check(const unsigned char *frame, size_t length) {
  unsigned char expected[MAX_HEADERS];
  const unsigned char *tcp = frame + (vnet ? 8 + VNET_BYTES : 4) + ETHERNET + IPV4;
  struct connection *state;
  uint32_t connection;
  uint64_t number;
  size_t size;
  if (frame + length < tcp + 20 || (connection = get16(tcp + 2) - FIRST_PORT) >= connections) {
    altered++;
    return;
  }
  state = table + connection;
  number = number_of(state, connection, tcp);
  size = put_headers(expected, PRIMARY, connection, number);
  if (length != size + (number ? payload : 0) || memcmp(frame, expected, size) ||
      (number && memcmp(frame + size, payload_of(connection, number), payload)))
    altered++;
  disorder += number != state->released;
  state->released = number + 1;
  state->out_count++;
  state->out_sum += number;
}

static unsigned char incoming[READ_BUFFER];
static size_t have; /* bytes of a frame that is not whole yet */

/* Reads once, and checks all whole frames; returns how many, -1 when nothing comes or what comes cannot be followed. */
static int64_t receive(void) {
  size_t at = 0, prefix = vnet ? 8 : 4;
  int64_t frames = 0;
  ssize_t got = recv(sockets[2], incoming + have, READ_BUFFER - have, 0);
  if (got <= 0)
    return -1;
  have += (size_t)got;
  while (have - at >= prefix) {
    size_t length = prefix + get32(incoming + at);
    if (length > MAX_HEADERS + MAX_PAYLOAD) {
      altered++;
      return -1;
    }
    if (have - at < length)
      break;
    check(incoming + at, length);
    at += length;
    frames++;
  }
  have -= at;
  memmove(incoming, incoming + at, have);
  return frames;
}

static void *read_all(void *unused) {
  bool more = true;
  while (more) {
    int64_t frames = receive();
    uint64_t now = now_ns();
    pthread_mutex_lock(&lock);
    if (frames < 0)
      stalled = true;
    else
      released += (uint64_t)frames;
    last_ns = now;
    more = !stalled && !(complete && released >= sent);
    pthread_cond_signal(&progress);
    pthread_mutex_unlock(&lock);
  }
  return unused;
}

/* ----------------------------------------------------------------------------------------------------------- what goes in */

static bool write_all(int machine) {
  const unsigned char *at = chunks[machine];
  size_t length = lengths[machine];
  while (length) {
    ssize_t put = send(sockets[machine], at, length, MSG_NOSIGNAL);
    if (put < 0 && errno == EINTR)
      continue;
    if (put <= 0)
      return false;
    at += put;
    length -= (size_t)put;
  }
  return true;
}

/* Makes both machines' next frames, of the connections whose turn it is. */
static void make_chunk(uint32_t frames) {
  uint32_t first = turn;
  for (int machine = PRIMARY; machine <= SECONDARY; machine++) {
    unsigned char *at = chunks[machine];
    turn = first;
    for (uint32_t i = 0; i < frames; i++) {
      struct connection *state = table + turn;
      /* With fewer connections than frames a connection comes again within the chunk. */
      at += put_frame(at, machine, turn, state->sent + i / connections);
      turn = turn + 1 == connections ? 0 : turn + 1;
    }
    lengths[machine] = (size_t)(at - chunks[machine]);
  }
  turn = first;
  for (uint32_t i = 0; i < frames; i++) {
    struct connection *state = table + turn;
    state->sent_sum += state->sent++;
    state->sent_count++;
    turn = turn + 1 == connections ? 0 : turn + 1;
  }
}

static bool write_chunk(void) { return write_all(PRIMARY) && write_all(SECONDARY); }

/* Waits until a chunk more may be outstanding; false when nothing comes out any more. */
static bool room_for(uint32_t frames) {
  struct timespec limit;
  bool room;
  clock_gettime(CLOCK_REALTIME, &limit);
  limit.tv_sec += PATIENCE;
  pthread_mutex_lock(&lock);
  while (!stalled && sent - released + frames > window)
    if (pthread_cond_timedwait(&progress, &lock, &limit) == ETIMEDOUT)
      stalled = true;
  room = !stalled;
  pthread_mutex_unlock(&lock);
  return room;
}

/* `frames` of them, or, if that is 0, as many as go through until `until`. */
static void feed(uint64_t frames, uint64_t until) {
  pthread_t reader;
  bool last = false;
  if (pthread_create(&reader, NULL, read_all, NULL))
    abort();
  while (!last) {
    uint32_t next = frames && frames - sent < chunk ? (uint32_t)(frames - sent) : chunk;
    if (!room_for(next))
      break;
    last = frames ? sent + next == frames : now_ns() >= until;
    pthread_mutex_lock(&lock);
    sent += next;
    complete = last; /* said before the last chunk is written, so that the reader knows it when that comes out */
    pthread_mutex_unlock(&lock);
    make_chunk(next);
    if (!write_chunk()) {
      pthread_mutex_lock(&lock);
      stalled = true;
      pthread_mutex_unlock(&lock);
      break;
    }
  }
  pthread_join(reader, NULL);
}

/* One frame at a time; returns how many round trips `samples` has. */
static uint64_t ping(uint64_t until, uint32_t *samples) {
  uint64_t count = 0;
  while (last_ns < until && count < MAX_SAMPLES) {
    uint64_t before = released, start;
    sent++;
    make_chunk(1);
    start = now_ns();
    if (!write_chunk())
      stalled = true;
    while (!stalled && released == before) {
      int64_t frames = receive();
      if (frames < 0)
        stalled = true;
      else
        released += (uint64_t)frames;
    }
    if (stalled)
      break;
    last_ns = now_ns();
    samples[count++] = (uint32_t)(last_ns - start);
  }
  return count;
}

/* ------------------------------------------------------------------------------------------------------------- commands */

static int by_size(const void *a, const void *b) {
  uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
  return (x > y) - (x < y);
}

static void report(uint64_t began, uint32_t *samples, uint64_t count) {
  uint64_t uneven = 0; /* connections of which not every frame came out just once */
  for (uint32_t i = 0; i < connections; i++)
    uneven += table[i].sent_count != table[i].out_count || table[i].sent_sum != table[i].out_sum;
  printf("{\"sent\": %llu, \"released\": %llu, \"seconds\": %.6f, \"disorder\": %llu, \"altered\": %llu, ",
         (unsigned long long)sent, (unsigned long long)released, (double)(last_ns - began) / 1e9,
         (unsigned long long)disorder, (unsigned long long)altered);
  printf("\"uneven\": %llu, \"stalled\": %s", (unsigned long long)uneven, stalled ? "true" : "false");
  if (count) {
    qsort(samples, count, sizeof *samples, by_size);
    printf(", \"median_ns\": %u, \"p99_ns\": %u", samples[count / 2], samples[count - 1 - count / 100]);
  }
  puts("}");
  fflush(stdout);
}

static void obey(const char *command, uint32_t *samples) {
  uint64_t began = now_ns(), count = 0, until;
  unsigned ms = 0;
  sent = released = disorder = altered = 0;
  complete = stalled = false;
  last_ns = began;
  if (sscanf(command, "%*s %u", &ms) != 1)
    ms = 0;
  until = began + ms * (uint64_t)1000000;
  if (!strncmp(command, "open", 4))
    feed(connections, 0);
  else if (!strncmp(command, "run", 3))
    feed(0, until);
  else
    count = ping(until, samples);
  report(began, samples, count);
}

static bool prepare(char **argv) {
  struct timeval patience = {.tv_sec = PATIENCE};
  uint64_t noise = 0;
  for (int i = 0; i < 3; i++)
    sockets[i] = atoi(argv[1 + i]);
  connections = (uint32_t)atoi(argv[4]);
  payload = (uint32_t)atoi(argv[5]);
  window = (uint32_t)atoi(argv[6]);
  chunk = (uint32_t)atoi(argv[7]);
  vnet = atoi(argv[8]);
  timestamps = atoi(argv[9]);
  request_every = (uint32_t)atoi(argv[10]);
  if (!connections || connections > MAX_CONNECTIONS || !payload || payload > MAX_PAYLOAD || !chunk || chunk > window)
    return false;
  headers = (vnet ? 8 + VNET_BYTES : 4) + ETHERNET + IPV4 + 60;
  for (size_t i = 0; i + 8 <= sizeof pool; i += 8) {
    noise = mix(noise + i);
    memcpy(pool + i, &noise, 8);
  }
  for (int i = 0; i < 3; i++) {
    setsockopt(sockets[i], SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    setsockopt(sockets[i], SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  }
  table = calloc(connections, sizeof *table);
  chunks[0] = malloc(chunk * (headers + payload));
  chunks[1] = malloc(chunk * (headers + payload));
  return table && chunks[0] && chunks[1];
}

int main(int argc, char **argv) {
  char command[64];
  uint32_t *samples = malloc(MAX_SAMPLES * sizeof *samples);
  if (argc != 11 || !samples || !prepare(argv)) {
    fputs("feeder: see feeder.c for its arguments\n", stderr);
    return 2;
  }
  while (fgets(command, sizeof command, stdin))
    obey(command, samples);
  return 0;
}
