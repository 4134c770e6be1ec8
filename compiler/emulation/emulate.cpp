// The run time of emulate.h: the threads of a block, their barriers and collectives, guarded memory.
//
// Each CUDA thread of a block is a fiber: a stack and saved registers. A fiber runs until it reaches
// a barrier or a collective of its warp that others have not reached, or returns; then the next one
// runs. Blocks run one after the other. The lane that arrives last at a collective computes it for
// all, on records that lie on the waiting lanes' stacks.
//
// Whatever is wrong ends in fail(), which leaves the launch by siglongjmp with a message. Faults
// come there from a signal handler, misaligned and outlying accesses from UBSan's hooks.
#include "collectives.h"
#include "fibers.h"
#include "memory.h"

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
