/* How a kernel's parts make a call: included at the end of each kernel, after Rows, Acc, bind, prologue, start, fold,
 * merge and finish.
 *
 * A tile is LANES rows i of one batch entry, and a task is a few tiles. Where rows i are few, a task is a tile against
 * one part of the rows j, and a second pass merges the parts in their order. */

typedef struct {
  Inputs in;
  Rows rows;
  Acc acc, part;
} Scratch;

/* Bytes of rows j and of tiles that a core's second cache is to hold beside each other, rather less than it has. */
enum {
  CACHE_J = 96 << 10,
  CACHE_I = 512 << 10,
  ROWS_J = UNROLL * (CACHE_J / (UNROLL * COLUMNS * (int)sizeof(real)) + 1),
  TILES = sizeof(Scratch) <= CACHE_I / 8 ? 8 : sizeof(Scratch) < CACHE_I ? CACHE_I / sizeof(Scratch) : 1
};

/* Fold rows j from `begin` to `end` into the accumulators of tiles, a few rows at a time into all of them: they are read
 * from memory once. */
static void fold_tiles(Scratch *s, int64_t tiles, int64_t begin, int64_t end) {
  const int64_t block = BLOCK_J ? BLOCK_J : ROWS_J;
  const int whole = !BLOCK_J || end - begin <= block;
  for (int64_t t = 0; t < tiles; t++) start(&s[t].acc);
  for (int64_t j = begin; j < end; j += block) { /* partial sums keep rounding errors small */
    const int64_t stop = at_most(j + block, end);
    for (int64_t t = 0; t < tiles && !whole; t++) start(&s[t].part);
    for (int64_t first = j; first < stop; first += ROWS_J)
      for (int64_t t = 0; t < tiles; t++)
        fold(&s[t].in, &s[t].rows, first, at_most(first + ROWS_J, stop), whole ? &s[t].acc : &s[t].part);
    for (int64_t t = 0; t < tiles && !whole; t++) merge(&s[t].acc, &s[t].part);
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
  Scratch *s = scratch;
  int64_t row[TILES], count[TILES];
  const int64_t most = *(const int64_t *)shared, first = task * most;
  const int64_t tiles = at_most(most, call->batch * tiles_of(call) - first);
  for (int64_t t = 0; t < tiles; t++) count[t] = open_tile(call, first + t, &s[t], &row[t]);
  fold_tiles(s, tiles, 0, call->cols);
  for (int64_t t = 0; t < tiles; t++) finish(call, &s[t].in, &s[t].rows, &s[t].acc, row[t], count[t]);
  return 0;
}

static int split_task(const Call *call, int64_t task, void *scratch, void *shared) {
  Scratch *s = scratch;
  int64_t row;
  const int64_t part = task % call->splits;
  open_tile(call, task / call->splits, s, &row);
  fold_tiles(s, 1, call->cols * part / call->splits, call->cols * (part + 1) / call->splits);
  ((Acc *)shared)[task] = s->acc;
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
  if (call->splits <= 1) {
    const int64_t each = tiles / (2 * threads); /* leaves two tasks or more for every thread */
    int64_t most = each < 1 ? 1 : at_most(each, TILES);
    return share(call, whole_task, (tiles + most - 1) / most, threads, most * sizeof(Scratch), &most);
  }
  void *parts = NULL;
  if (posix_memalign(&parts, 64, sizeof(Acc) * tiles * call->splits)) return 1;
  const int failed = share(call, split_task, tiles * call->splits, threads, sizeof(Scratch), parts) ||
                     share(call, merge_task, tiles, threads, sizeof(Scratch), parts);
  free(parts);
  return failed;
}
