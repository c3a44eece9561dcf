/* How a kernel's parts make a call: included at the end of each kernel, after Rows, Acc, bind, prologue, start, fold,
 * merge and finish.
 *
 * A task is LANES rows i of one batch entry, against one part of the rows j. Where rows i are few, j is split, and a
 * second pass merges the parts in their order. */

typedef struct {
  Inputs in;
  Rows rows;
  Acc acc, part;
} Scratch;

static void fold_part(Scratch *s, int64_t begin, int64_t end, Acc *acc) {
  start(acc);
  if (BLOCK_J == 0 || end - begin <= BLOCK_J) {
    fold(&s->in, &s->rows, begin, end, acc);
    return;
  }
  for (int64_t j = begin; j < end; j += BLOCK_J) { /* partial sums keep rounding errors small */
    start(&s->part);
    fold(&s->in, &s->rows, j, at_most(j + BLOCK_J, end), &s->part);
    merge(acc, &s->part);
  }
}

static int64_t tiles_of(const Call *call) { return (call->rows + LANES - 1) / LANES; }

/* Put the tile's rows in place; returns how many of the LANES are real. */
static int64_t open_tile(const Call *call, int64_t tile, Scratch *s, int64_t *row) {
  const int64_t entry = tile / tiles_of(call);
  const int64_t first = tile % tiles_of(call) * LANES, count = at_most(LANES, call->rows - first);
  bind(call, entry, &s->in);
  prologue(&s->in, first, count, &s->rows);
  *row = entry * call->rows + first;
  return count;
}

static int whole_task(const Call *call, int64_t task, void *scratch, void *shared) {
  (void)shared;
  Scratch *s = scratch;
  int64_t row;
  const int64_t count = open_tile(call, task, s, &row);
  fold_part(s, 0, call->cols, &s->acc);
  finish(call, &s->in, &s->rows, &s->acc, row, count);
  return 0;
}

static int split_task(const Call *call, int64_t task, void *scratch, void *shared) {
  Scratch *s = scratch;
  int64_t row;
  const int64_t part = task % call->splits;
  open_tile(call, task / call->splits, s, &row);
  fold_part(s, call->cols * part / call->splits, call->cols * (part + 1) / call->splits, &((Acc *)shared)[task]);
  return 0;
}

static int merge_task(const Call *call, int64_t task, void *scratch, void *shared) {
  Scratch *s = scratch;
  Acc *parts = (Acc *)shared + task * call->splits;
  int64_t row;
  const int64_t count = open_tile(call, task, s, &row);
  for (int64_t n = 1; n < call->splits; n++) merge(&parts[0], &parts[n]);
  finish(call, &s->in, &s->rows, &parts[0], row, count);
  return 0;
}

/* The entry point. Returns 0, or 1 where memory ran out. */
int run(const Call *call, int threads) {
  const int64_t tiles = call->batch * tiles_of(call);
  if (call->splits <= 1) return share(call, whole_task, tiles, threads, sizeof(Scratch), NULL);
  void *parts = NULL;
  if (posix_memalign(&parts, 64, sizeof(Acc) * tiles * call->splits)) return 1;
  const int failed = share(call, split_task, tiles * call->splits, threads, sizeof(Scratch), parts) ||
                     share(call, merge_task, tiles, threads, sizeof(Scratch), parts);
  free(parts);
  return failed;
}
