// Barriers, collectives of a warp, and asynchronous copies.
#pragma once

#include "fibers.h"

namespace {

unsigned lanes_of(unsigned warp) {  // those that exist
  unsigned lanes = count - warp * WARP;
  return lanes >= WARP ? ~0u : (1u << lanes) - 1;
}

bool waits_for(const Fiber& fiber, const char* name, unsigned mask) {
  return fiber.state == IN_COLLECTIVE && fiber.mask == mask && !strcmp(fiber.collective, name);
}

// `complete(records, mask)` gets the record of every lane of the mask.
template <class Record>
void collective(const char* name, unsigned mask, Record* record,
                void (*complete)(Record** records, unsigned mask)) {
  Fiber& mine = fibers[current];
  unsigned warp = current / WARP, lane = current % WARP;
  if (!(mask >> lane & 1)) fail("%s with the mask 0x%08x, which lacks lane %u", name, mask, lane);
  mine.state = IN_COLLECTIVE;
  mine.collective = name;
  mine.mask = mask;
  mine.record = record;
  Record* records[WARP] = {};
  unsigned needed = mask & lanes_of(warp);
  for (unsigned i = 0; i < WARP; i++) {
    if (!(needed >> i & 1)) continue;
    const Fiber& other = fibers[warp * WARP + i];
    if (!waits_for(other, name, mask)) return to_scheduler();
    records[i] = (Record*)other.record;
  }
  complete(records, mask);
  for (unsigned i = 0; i < WARP; i++)
    if (records[i]) fibers[warp * WARP + i].state = READY;
}

struct Nothing {};
void complete_syncwarp(Nothing**, unsigned) {}

struct Shuffle {
  unsigned value;
  int operand;
  int width;
  unsigned result;
};

// The lane that `lane` reads, and itself where that is outside of its segment of `width` lanes.
typedef int Source(int lane, int operand, int width);
int source_idx(int lane, int operand, int width) {
  return (lane & ~(width - 1)) | (operand & (width - 1));
}
int source_up(int lane, int operand, int width) {
  int from = lane - operand;
  return from < (lane & ~(width - 1)) ? lane : from;
}
int source_down(int lane, int operand, int width) {
  return (lane & (width - 1)) + operand >= width ? lane : lane + operand;
}
int source_xor(int lane, int operand, int width) {
  int from = lane ^ operand;
  return from >= (lane & ~(width - 1)) + width ? lane : from;
}

template <Source source>
void complete_shuffle(Shuffle** records, unsigned) {
  for (int i = 0; i < WARP; i++) {
    if (!records[i]) continue;
    int from = source(i, records[i]->operand, records[i]->width);
    bool there = from >= 0 && from < WARP && records[from];
    records[i]->result = there ? records[from]->value : 0x01010101u * POISON;
  }
}

struct Vote {
  int predicate;
  unsigned result;
};
void complete_ballot(Vote** records, unsigned) {
  unsigned votes = 0;
  for (int i = 0; i < WARP; i++)
    if (records[i] && records[i]->predicate) votes |= 1u << i;
  for (int i = 0; i < WARP; i++)
    if (records[i]) records[i]->result = votes;
}

// PTX ISA, "Matrix Fragments for mma.m8n8k16" and "... mma.m16n8k32 with floating point type or
// integer type": lane = 4 * group + member. Register r of A holds row group (+ 8 for odd r), k =
// 4 * member + 0..3 (+ 16 from r = 2 on); register r of B holds column group, k = 4 * member + 0..3
// + 16 * r; element e of C is row group (+ 8 from e = 2 on), column 2 * member + e % 2.
struct Mma {
  int* c;
  const unsigned* a;
  const unsigned* b;
};
int byte_of(unsigned word, int i, bool is_signed) {
  unsigned byte = word >> (8 * i) & 0xFF;
  return is_signed ? (int8_t)byte : (int)byte;
}
template <int rows, int depth, bool x_signed, bool w_signed>
void complete_mma(Mma** records, unsigned) {
  short x[rows][depth], w[8][depth];
  for (int lane = 0; lane < WARP; lane++) {
    int group = lane / 4, member = lane % 4;
    for (int r = 0; r < rows / 8 * (depth / 16); r++)
      for (int i = 0; i < 4; i++)
        x[group + 8 * (rows == 16 && r % 2)][4 * member + i + 16 * (r / 2)] =
            byte_of(records[lane]->a[r], i, x_signed);
    for (int r = 0; r < depth / 16; r++)
      for (int i = 0; i < 4; i++)
        w[group][4 * member + i + 16 * r] = byte_of(records[lane]->b[r], i, w_signed);
  }
  for (int lane = 0; lane < WARP; lane++)
    for (int e = 0; e < rows / 4; e++) {
      const short* xs = x[lane / 4 + 8 * (e / 2)];
      const short* ws = w[2 * (lane % 4) + e % 2];
      unsigned sum = records[lane]->c[e];  // wraps
      for (int k = 0; k < depth; k++) sum += (unsigned)(xs[k] * ws[k]);
      records[lane]->c[e] = (int)sum;
    }
}

bool is_shared(const void* address, size_t bytes) {
  auto* at = (const unsigned char*)address;
  return (at >= static_begin && at + bytes <= static_end) ||
         (at >= emulated_dynamic_shared && at + bytes <= dynamic_end);
}

// PTX ISA, "ldmatrix": lane 8 * i + r has the address of row r of matrix i, 16 bytes; register i of
// lane l gets bytes 4 * (l % 4) + 0..3 of row l / 4 of matrix i.
struct Ldmatrix {
  unsigned* d;
  const void* address;
};
template <int matrices>
void complete_ldmatrix(Ldmatrix** records, unsigned) {
  for (int lane = 0; lane < 8 * matrices; lane++) {
    const void* row = records[lane]->address;
    if ((uintptr_t)row % 16) fail("ldmatrix of a row at an address that is no multiple of 16 (lane %d)", lane);
    if (!is_shared(row, 16)) fail("ldmatrix of a row outside of the shared memory (lane %d)", lane);
  }
  unsigned loaded[WARP][matrices];
  for (int lane = 0; lane < WARP; lane++)
    for (int i = 0; i < matrices; i++) {
      auto* row = (const unsigned char*)records[8 * i + lane / 4]->address;
      memcpy(&loaded[lane][i], row + 4 * (lane % 4), 4);
    }
  for (int lane = 0; lane < WARP; lane++) memcpy(records[lane]->d, loaded[lane], sizeof loaded[lane]);
}

void need_whole_warp(const char* name) {
  if (lanes_of(current / WARP) != ~0u) fail("%s in a warp of fewer than 32 threads", name);
}

}  // namespace

extern "C" {

void emulated_barrier() {
  fibers[current].state = AT_BARRIER;
  to_scheduler();
}

void emulated_syncwarp(unsigned mask) {
  Nothing nothing;
  collective("__syncwarp", mask, &nothing, complete_syncwarp);
}

unsigned emulated_activemask() { return lanes_of(current / WARP); }

unsigned emulated_shuffle(const char* name, unsigned mask, unsigned value, int operand, int width) {
  if (width < 1 || width > WARP || (width & (width - 1)))
    fail("%s with the width %d; expected a power of 2 up to 32", name, width);
  Shuffle record = {value, operand, width, 0};
  auto complete = !strcmp(name, "__shfl_sync")        ? complete_shuffle<source_idx>
                  : !strcmp(name, "__shfl_up_sync")   ? complete_shuffle<source_up>
                  : !strcmp(name, "__shfl_down_sync") ? complete_shuffle<source_down>
                                                      : complete_shuffle<source_xor>;
  collective(name, mask, &record, complete);
  return record.result;
}

unsigned emulated_ballot(unsigned mask, int predicate) {
  Vote record = {predicate, 0};
  collective("__ballot_sync", mask, &record, complete_ballot);
  return record.result;
}

void emulated_mma(const char* name, int depth, int x_signed, int w_signed, int* c,
                  const unsigned* a, const unsigned* b) {
  need_whole_warp(name);
  typedef void Complete(Mma**, unsigned);
  static Complete* const completes[2][2][2] = {
      {{complete_mma<8, 16, 0, 0>, complete_mma<8, 16, 0, 1>},
       {complete_mma<8, 16, 1, 0>, complete_mma<8, 16, 1, 1>}},
      {{complete_mma<16, 32, 0, 0>, complete_mma<16, 32, 0, 1>},
       {complete_mma<16, 32, 1, 0>, complete_mma<16, 32, 1, 1>}}};
  Mma record = {c, a, b};
  collective(name, ~0u, &record, completes[depth == 32][x_signed][w_signed]);
}

void emulated_ldmatrix(const char* name, int matrices, unsigned* d, const void* address) {
  need_whole_warp(name);
  Ldmatrix record = {d, address};
  collective(name, ~0u, &record,
             matrices == 4 ? complete_ldmatrix<4> : complete_ldmatrix<2>);
}

// An asynchronous copy happens as late as it may: when its group is waited for. Until then the
// destination holds poison.
void emulated_copy(void* shared, const void* global, int valid) {
  if ((uintptr_t)shared % 16 || (valid && (uintptr_t)global % 16))
    fail("cp.async between addresses that are no multiples of 16 (%p to %p)", global, shared);
  if (!is_shared(shared, 16)) fail("cp.async to %p, outside of the shared memory", shared);
  if (valid) {
    volatile const char* source = (const char*)global;  // a fault belongs to this instruction
    (void)source[0];
    (void)source[15];
  }
  memset(shared, POISON, 16);
  Fiber& fiber = fibers[current];
  if (fiber.issued - fiber.done == MAX_COPIES) fail("%u copies without a wait", MAX_COPIES);
  fiber.copies[fiber.issued++ % MAX_COPIES] = {shared, global, valid != 0, fiber.groups};
}

void emulated_copy_commit() { fibers[current].groups++; }

void emulated_copy_wait(int groups) {
  Fiber& fiber = fibers[current];
  for (; fiber.done < fiber.issued; fiber.done++) {
    const Copy& copy = fiber.copies[fiber.done % MAX_COPIES];
    if (copy.group + groups >= fiber.groups) return;
    if (copy.valid)
      memcpy(copy.shared, copy.global, 16);
    else
      memset(copy.shared, 0, 16);
  }
}

}  // extern "C"
