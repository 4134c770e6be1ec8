// The threads of a block as fibers: their stacks, and the change from one to another.
#pragma once

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

}  // namespace
