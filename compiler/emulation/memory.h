// What finds wrong accesses: the hooks of UBSan, and memory with nothing around it.
#pragma once

#include "fibers.h"

extern "C" {

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
