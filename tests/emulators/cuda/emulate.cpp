// The run time of emulate.h: the threads of a block, their barriers and collectives, guarded memory.
//
// Each CUDA thread of a block is a fiber: a stack and saved registers. A fiber runs until it reaches
// a barrier or a collective of its warp that others have not reached, or returns; then the next one
// runs. Blocks run one after the other. The lane that arrives last at a collective computes it for
// all, on records that lie on the waiting lanes' stacks.
//
// Whatever is wrong ends in fail(), which leaves the launch by siglongjmp with a message. Faults
// come there from a signal handler, misaligned and outlying accesses from UBSan's hooks.
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

namespace {

const int WARP = 32;
const unsigned MAX_THREADS = 1024;  // of a block
const unsigned MAX_COPIES = 512;    // of a thread, not waited for
const size_t STACK = 256 << 10;
const size_t STACK_GUARD = 64 << 10;  // the lowest part of it
const size_t PAGE = 4096;
const size_t SHARED = 256 << 10;  // more than any device has
// As far as a wrong int32 offset goes in most cases, and small enough for thousands of arrays.
const size_t GUARD = (size_t)4 << 30;
const unsigned char POISON = 0xCD;
const unsigned char CANARY = 0xA5;

struct Index {
  unsigned x, y, z;
};

enum State { READY, AT_BARRIER, IN_COLLECTIVE, RETURNED };

struct Copy {
  void* shared;
  const void* global;
  bool valid;
  unsigned group;
};

struct Fiber {
  void* registers;  // the stack pointer below the saved registers
  State state;
  Index index;
  const char* collective;
  unsigned mask;
  void* record;
  unsigned groups;      // of copies, committed so far
  unsigned done, issued;  // copies so far; copy i is copies[i % MAX_COPIES]
  Copy copies[MAX_COPIES];
#ifdef EMULATED_UCONTEXT
  ucontext_t context;
#endif
};

Fiber fibers[MAX_THREADS];
unsigned count;  // threads of a block
unsigned current;
unsigned char* stacks;
void (*kernel)(void**);
void** kernel_arguments;
unsigned char* shared_arena;  // of dynamic shared memory, before a guard
unsigned char* static_begin;
unsigned char* static_end;
unsigned char* dynamic_end;

pid_t runner;  // the thread that is in a launch; 0 for none
bool in_thread;  // of a block, not between blocks
sigjmp_buf escape;
char message[1024];
uintptr_t fault;  // the address of a fault; 0 where the failure is no fault

[[noreturn]] void leave() { siglongjmp(escape, 1); }

[[noreturn]] __attribute__((format(printf, 1, 2))) void fail(const char* format, ...) {
  va_list values;
  va_start(values, format);
  vsnprintf(message, sizeof message, format, values);
  va_end(values);
  leave();
}

// Changing stacks. What a call preserves is pushed, the stack pointers are exchanged, and the other
// fiber's registers are popped.
#if defined(__x86_64__) && !defined(EMULATED_UCONTEXT)
extern "C" void emulated_change(void** from, void* to);
asm(R"(
.text
.globl emulated_change
.hidden emulated_change
.type emulated_change, @function
emulated_change:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulated_change, .-emulated_change
)");
const int SAVED = 8;     // words: six registers, the return address, and one to align
const int RETURN_AT = 6;  // the word with the return address
#elif defined(__aarch64__) && !defined(EMULATED_UCONTEXT)
extern "C" void emulated_change(void** from, void* to);
asm(R"(
.text
.globl emulated_change
.hidden emulated_change
.type emulated_change, %function
emulated_change:
  sub sp, sp, #160
  stp x19, x20, [sp]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size emulated_change, .-emulated_change
)");
const int SAVED = 20;
const int RETURN_AT = 11;
#elif !defined(EMULATED_UCONTEXT)
#define EMULATED_UCONTEXT
#endif

#ifdef EMULATED_UCONTEXT
ucontext_t scheduler;
#else
void* scheduler;
#endif

void to_scheduler() {
#ifdef EMULATED_UCONTEXT
  swapcontext(&fibers[current].context, &scheduler);
#else
  emulated_change(&fibers[current].registers, scheduler);
#endif
}

void thread_body() {
  kernel(kernel_arguments);
  fibers[current].state = RETURNED;
  to_scheduler();
  __builtin_unreachable();
}

void prepare(unsigned thread) {
  Fiber& fiber = fibers[thread];
  // Not at the same distance from a page, where the stacks would share few sets of the cache.
  unsigned char* top = stacks + (thread + 1) * STACK - thread % 61 * 320;
#ifdef EMULATED_UCONTEXT
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = top - STACK + STACK_GUARD;
  fiber.context.uc_stack.ss_size = STACK - STACK_GUARD;
  makecontext(&fiber.context, thread_body, 0);
#else
  void** words = (void**)top - SAVED;
  memset(words, 0, SAVED * sizeof *words);
  words[RETURN_AT] = (void*)thread_body;
  fiber.registers = words;
#endif
  fiber.state = READY;
  fiber.groups = fiber.done = fiber.issued = 0;
}

}  // namespace

extern "C" {
Index emulated_thread, emulated_block, emulated_block_size, emulated_grid_size;
unsigned char* emulated_dynamic_shared;
}

namespace {

void resume(unsigned thread) {
  current = thread;
  emulated_thread = fibers[thread].index;
  in_thread = true;
#ifdef EMULATED_UCONTEXT
  swapcontext(&scheduler, &fibers[thread].context);
#else
  emulated_change(&scheduler, fibers[thread].registers);
#endif
  in_thread = false;
}

// Collectives.

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

// UBSan's hooks (compiler-rt, ubsan_handlers.h), which the program calls instead of going on.
struct Location {
  const char* file;
  uint32_t line, column;
};
struct TypeDescriptor {
  uint16_t kind, info;
  char name[1];
};
struct TypeMismatch {
  Location location;
  const TypeDescriptor* type;
  unsigned char log_alignment, check_kind;
};
struct Overflow {
  Location location;
};
struct OutOfBounds {
  Location location;
  const TypeDescriptor *array, *index;
};

void __ubsan_handle_type_mismatch_v1_abort(TypeMismatch* data, uintptr_t address) {
  uintptr_t alignment = (uintptr_t)1 << data->log_alignment;
  if (address % alignment)
    fail("line %u: misaligned access to %s at %p, which is no multiple of %zu", data->location.line,
         data->type->name, (void*)address, (size_t)alignment);
  fail("line %u: access to %s outside of its array", data->location.line, data->type->name);
}
void __ubsan_handle_out_of_bounds_abort(OutOfBounds* data, uintptr_t index) {
  fail("line %u: index %td of %s is outside of the array", data->location.line, (ptrdiff_t)index,
       data->array->name);
}
void __ubsan_handle_divrem_overflow_abort(Overflow* data, uintptr_t, uintptr_t) {
  fail("line %u: integer division by zero", data->location.line);
}

// Guarded memory: it ends at a page that cannot be touched, as does what lies before its first page.
// It begins at a multiple of 16, so up to 15 bytes behind the end can be touched: they are checked
// for changes, and reading them is harmless on a device too.
struct Memory {
  unsigned char *mapping, *first_page, *begin, *end, *last_page;
};

int emulated_allocate(Memory* memory, size_t bytes) {
  size_t inner = (bytes + 15) / 16 * 16;
  size_t pages = inner ? (inner + PAGE - 1) / PAGE * PAGE : PAGE;
  void* mapping = mmap(nullptr, 2 * GUARD + pages, PROT_NONE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) return -1;
  memory->mapping = (unsigned char*)mapping;
  memory->first_page = memory->mapping + GUARD;
  memory->last_page = memory->first_page + pages;
  memory->begin = memory->last_page - inner;
  memory->end = memory->begin + bytes;
  if (mprotect(memory->first_page, pages, PROT_READ | PROT_WRITE)) return -1;
  memset(memory->first_page, CANARY, pages);
  memset(memory->begin, POISON, bytes);
  return 0;
}

void emulated_protect(const Memory* memory) {
  mprotect(memory->first_page, memory->last_page - memory->first_page, PROT_READ);
}

// Where something outside of the memory was changed, as an offset from its beginning; 0 if nowhere.
ptrdiff_t emulated_damage(const Memory* memory) {
  for (unsigned char* at = memory->begin; at-- > memory->first_page;)
    if (*at != CANARY) return at - memory->begin;
  for (unsigned char* at = memory->end; at < memory->last_page; at++)
    if (*at != CANARY) return at - memory->begin;
  return 0;
}

void emulated_free(const Memory* memory) {
  munmap(memory->mapping, 2 * GUARD + (memory->last_page - memory->first_page));
}

}  // extern "C"

namespace {

// Signals.

struct sigaction previous[NSIG];
const int SIGNALS[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGVTALRM};

const char* named(int number) {
  switch (number) {
    case SIGSEGV: return "access to memory that is not there";
    case SIGBUS: return "access to memory that is not there (SIGBUS)";
    case SIGFPE: return "integer division by zero";
    case SIGVTALRM: return "out of time: it does not end";
    default: return "undefined behaviour (trap)";
  }
}

void on_signal(int number, siginfo_t* info, void* context) {
  if (syscall(SYS_gettid) != runner) {  // not ours: another thread of this process
    const struct sigaction& other = previous[number];
    if (other.sa_flags & SA_SIGINFO) return other.sa_sigaction(number, info, context);
    if (other.sa_handler == SIG_IGN) return;
    if (other.sa_handler != SIG_DFL) return other.sa_handler(number);
    sigaction(number, &other, nullptr);
    return;
  }
  const char* text = named(number);
  if (number == SIGSEGV || number == SIGBUS) {
    fault = (uintptr_t)info->si_addr;
    auto* at = (unsigned char*)fault;
    if (stacks && at >= stacks && at < stacks + MAX_THREADS * STACK) {
      text = "stack overflow: more than 170 KB of local variables";
      fault = 0;
    }
#if defined(__x86_64__)
    else if (info->si_code == SEGV_MAPERR || info->si_code == SEGV_ACCERR)
      text = ((ucontext_t*)context)->uc_mcontext.gregs[REG_ERR] & 2 ? "write" : "read";
    else
      text = "misaligned access, or one to an address that cannot be";
#endif
  }
  snprintf(message, sizeof message, "%s", text);
  leave();
}

void make_arenas() {
  if (stacks) return;
  void* memory = mmap(nullptr, MAX_THREADS * STACK, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  void* shared = mmap(nullptr, SHARED + 2 * GUARD, PROT_NONE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED || shared == MAP_FAILED) fail("no memory for the threads' stacks");
  for (unsigned i = 0; i < MAX_THREADS; i++)
    mprotect((unsigned char*)memory + i * STACK, STACK_GUARD, PROT_NONE);
  stacks = (unsigned char*)memory;
  shared_arena = (unsigned char*)shared + GUARD;
}

void lay_out_shared(size_t bytes) {
  if (bytes > SHARED) fail("%zu bytes of shared memory; no device has more than %zu", bytes, SHARED);
  dynamic_end = shared_arena + SHARED;
  emulated_dynamic_shared = dynamic_end - (bytes + 15) / 16 * 16;
  dynamic_end = emulated_dynamic_shared + bytes;
  size_t closed = (emulated_dynamic_shared - shared_arena) / PAGE * PAGE;
  mprotect(shared_arena, closed, PROT_NONE);
  mprotect(shared_arena + closed, SHARED - closed, PROT_READ | PROT_WRITE);
  memset(shared_arena + closed, CANARY, SHARED - closed);
}

void check_shared() {
  auto* page = (unsigned char*)((uintptr_t)emulated_dynamic_shared / PAGE * PAGE);
  for (unsigned char* at = page; at < shared_arena + SHARED; at++)
    if ((at < emulated_dynamic_shared || at >= dynamic_end) && *at != CANARY)
      fail("write to byte %td of %td bytes of shared memory", at - emulated_dynamic_shared,
           dynamic_end - emulated_dynamic_shared);
}

const char* doing(const Fiber& fiber) {
  switch (fiber.state) {
    case AT_BARRIER: return "waits at __syncthreads()";
    case RETURNED: return "has returned";
    case IN_COLLECTIVE: return fiber.collective;
    default: return "runs";
  }
}

[[noreturn]] void report_deadlock() {
  in_thread = true;  // of the first that waits
  for (unsigned i = 0; i < count; i++) {
    const Fiber& fiber = fibers[i];
    if (fiber.state != IN_COLLECTIVE) continue;
    current = i;
    for (unsigned lane = 0; lane < WARP; lane++) {
      unsigned other = i / WARP * WARP + lane;
      if (!(fiber.mask >> lane & 1) || other >= count) continue;
      if (waits_for(fibers[other], fiber.collective, fiber.mask)) continue;
      bool collective = fibers[other].state == IN_COLLECTIVE;
      fail("deadlock: %s with the mask 0x%08x waits for lane %u, which %s%s", fiber.collective,
           fiber.mask, lane, collective ? "is in " : "", doing(fibers[other]));
    }
  }
  unsigned waiting = 0;
  for (unsigned i = count; i-- > 0;)
    if (fibers[i].state == AT_BARRIER) current = i, waiting++;
  fail("deadlock: %u threads wait at __syncthreads(), %u have returned", waiting, count - waiting);
}

uint64_t next_random(uint64_t* state) {  // SplitMix64
  uint64_t z = (*state += 0x9E3779B97F4A7C15);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
  return z ^ (z >> 31);
}

void shuffle(unsigned* order, unsigned length, uint64_t* random) {
  if (!*random) return;
  for (unsigned i = length; i > 1; i--) {
    unsigned other = next_random(random) % i, last = order[i - 1];
    order[i - 1] = order[other];
    order[other] = last;
  }
}

unsigned order[MAX_THREADS];  // of a block's threads
unsigned* blocks;             // in their order

void run_block(uint64_t* random) {
  memset(emulated_dynamic_shared, POISON, dynamic_end - emulated_dynamic_shared);
  memset(static_begin, POISON, static_end - static_begin);
  for (unsigned i = 0; i < count; i++) prepare(i);
  for (;;) {
    shuffle(order, count, random);
    bool progress = false;
    for (unsigned i = 0; i < count; i++)
      if (fibers[order[i]].state == READY) {
        resume(order[i]);
        progress = true;
      }
    unsigned returned = 0, at_barrier = 0;
    for (unsigned i = 0; i < count; i++) {
      returned += fibers[i].state == RETURNED;
      at_barrier += fibers[i].state == AT_BARRIER;
    }
    if (returned == count) break;
    if (at_barrier == count)
      for (unsigned i = 0; i < count; i++) fibers[i].state = READY;
    else if (!progress)
      report_deadlock();
  }
  check_shared();
}

void run_grid(uint64_t random) {
  Index size = emulated_block_size, grid = emulated_grid_size;
  for (unsigned i = 0; i < count; i++) {
    order[i] = i;
    fibers[i].index = {i % size.x, i / size.x % size.y, i / size.x / size.y};
  }
  unsigned number = grid.x * grid.y * grid.z;
  blocks = (unsigned*)realloc(blocks, number * sizeof *blocks);
  for (unsigned i = 0; i < number; i++) blocks[i] = i;
  shuffle(blocks, number, &random);
  for (unsigned i = 0; i < number; i++) {
    unsigned block = blocks[i];
    emulated_block = {block % grid.x, block / grid.x % grid.y, block / grid.x / grid.y};
    run_block(&random);
  }
}

}  // namespace

extern "C" {

struct Launch {
  void (*kernel)(void**);
  void** arguments;
  void *shared_begin, *shared_end;  // of the static arrays
  Index grid, block;
  size_t shared_bytes;
  uint64_t random;  // 0: threads and blocks in their order
  double seconds;   // of CPU time
  // What failed:
  const char* message;
  uintptr_t fault;
  int in_thread;
  Index failed_block, failed_thread;
};

// 0, or -1 where something failed.
int emulated_launch(Launch* launch) {
  kernel = launch->kernel;
  kernel_arguments = launch->arguments;
  emulated_grid_size = launch->grid;
  emulated_block_size = launch->block;
  count = launch->block.x * launch->block.y * launch->block.z;
  static_begin = (unsigned char*)launch->shared_begin;
  static_end = (unsigned char*)launch->shared_end;
  in_thread = false;
  fault = 0;

  static unsigned char handler_stack[64 << 10];
  stack_t own = {}, others = {};
  own.ss_sp = handler_stack;
  own.ss_size = sizeof handler_stack;
  sigaltstack(&own, &others);
  struct sigaction action = {};
  action.sa_sigaction = on_signal;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  for (int number : SIGNALS) sigaction(number, &action, &previous[number]);
  struct sigevent event = {};
  event.sigev_notify = SIGEV_THREAD_ID;
  event.sigev_signo = SIGVTALRM;
  event._sigev_un._tid = syscall(SYS_gettid);
  timer_t timer;
  bool timed = timer_create(CLOCK_THREAD_CPUTIME_ID, &event, &timer) == 0;
  struct itimerspec limit = {};
  limit.it_value.tv_sec = (time_t)launch->seconds;
  limit.it_value.tv_nsec = (long)((launch->seconds - (double)limit.it_value.tv_sec) * 1e9);
  if (timed) timer_settime(timer, 0, &limit, nullptr);

  int failed = sigsetjmp(escape, 1);
  if (!failed) {
    runner = syscall(SYS_gettid);
    make_arenas();
    lay_out_shared(launch->shared_bytes);
    run_grid(launch->random);
  }
  runner = 0;

  if (timed) timer_delete(timer);
  for (int number : SIGNALS) sigaction(number, &previous[number], nullptr);
  sigaltstack(&others, nullptr);
  if (!failed) return 0;
  launch->message = message;
  launch->fault = fault;
  launch->in_thread = in_thread;
  launch->failed_block = emulated_block;
  launch->failed_thread = fibers[current].index;
  return -1;
}

}  // extern "C"
