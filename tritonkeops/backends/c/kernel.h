/* The frame of every kernel: inputs as the caller passes them, and a few threads that share the tasks.
 *
 * Threads are started per call rather than taken from OpenMP's pool: no second OpenMP runtime beside torch's, no
 * hanging child after a fork, no library that clang lacks; a start costs about 20 microseconds, so the caller asks for
 * threads only when there is work for them. */
#ifndef TRITONKEOPS_KERNEL_H
#define TRITONKEOPS_KERNEL_H

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "math.h"

/* A choice by masks: chains of ?: on related conditions become branches that no compiler vectorises. */
static inline int32_t select_i32(int c, int32_t a, int32_t b) { const int32_t m = -c; return (a & m) | (b & ~m); }
static inline int64_t select_i64(int c, int64_t a, int64_t b) { const int64_t m = -(int64_t)c; return (a & m) | (b & ~m); }
static inline float select_f32(int c, float a, float b) {
  const uint32_t m = -(uint32_t)c;
  return float_of_u32((bits_of_f32(a) & m) | (bits_of_f32(b) & ~m));
}
static inline double select_f64(int c, double a, double b) {
  const uint64_t m = -(uint64_t)c;
  return float_of_u64((bits_of_f64(a) & m) | (bits_of_f64(b) & ~m));
}

static inline int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }

/* A component number that a branch not taken may push out of its vector. */
static inline int64_t inside(int64_t k, int64_t dim) { return k < 0 ? 0 : k < dim ? k : dim - 1; }

/* Which pairs of rows i and j count, where not all of them do. What is set depends on the kind: see ranges.h, band.h
 * and lists.h. */
typedef struct {
  int64_t tiles;        /* ranges: tiles of rows i */
  const int64_t *tile;  /* of each, its first row, its number of rows, and which spans, from one number to another */
  const int64_t *span;  /* rows j, from one to another */
  int64_t low, high;    /* band: low <= j - i <= high */
  const int64_t *start; /* lists: that of row i has places start[i] to start[i + 1] */
  const void *list;     /* rows j, as idx_t */
} Pattern;

/* One call. Batch entry b of input n starts at data[n] + offset[b * inputs + n]; its row r is stride[n] further each. */
typedef struct {
  const void *const *data;
  const int64_t *stride;
  const int64_t *offset;
  int64_t batch, rows, cols; /* B, M and N */
  int64_t splits;            /* parts of j that are folded apart and merged */
  void *value;
  int64_t *index;
  const Pattern *pattern; /* NULL where all pairs count */
} Call;

typedef int (*Task)(const Call *call, int64_t task, void *scratch, void *shared);

typedef struct {
  const Call *call;
  Task task;
  void *shared;
  size_t scratch;
  int64_t tasks, next;
  int failed;
} Crew;

static void *work(void *argument) {
  Crew *crew = argument;
  void *scratch = NULL;
  if (posix_memalign(&scratch, 64, crew->scratch)) {
    __atomic_store_n(&crew->failed, 1, __ATOMIC_RELAXED);
    return NULL;
  }
  int64_t task;
  while ((task = __atomic_fetch_add(&crew->next, 1, __ATOMIC_RELAXED)) < crew->tasks)
    crew->task(crew->call, task, scratch, crew->shared);
  free(scratch);
  return NULL;
}

/* Run tasks 0 .. tasks-1, each once, on at most `threads` threads, this one included. Returns 0, or 1 without memory. */
static int share(const Call *call, Task task, int64_t tasks, int threads, size_t scratch, void *shared) {
  enum { MOST = 256 };
  Crew crew = {call, task, shared, scratch, tasks, 0, 0};
  pthread_t others[MOST];
  int started = 0;
  while (started < at_most(at_most(threads, MOST), tasks) - 1 && !pthread_create(&others[started], NULL, work, &crew)) started++;
  work(&crew);
  for (int n = 0; n < started; n++) pthread_join(others[n], NULL);
  return crew.failed && crew.next < tasks;
}

#endif
