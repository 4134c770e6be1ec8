// CUDA C++ for a CPU: what generated kernels use of the language, as plain C++ (C++17, no headers).
//
// A kernel becomes a function that is called once per CUDA thread, each on a stack of its own.
// Barriers and collectives of a warp change stacks (emulate.cpp); everything else is here.
// toolchain.py puts a kernel's source between this text and one EMULATED_KERNEL(name) per
// kernel.
#pragma once

typedef __INT8_TYPE__ int8_t;
typedef __INT16_TYPE__ int16_t;
typedef __INT32_TYPE__ int32_t;
typedef __INT64_TYPE__ int64_t;
typedef __UINT8_TYPE__ uint8_t;
typedef __UINT16_TYPE__ uint16_t;
typedef __UINT32_TYPE__ uint32_t;
typedef __UINT64_TYPE__ uint64_t;
typedef __SIZE_TYPE__ size_t;
typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
// Blocks run one after the other, so a block's memory is the program's. Arrays of the dynamic size
// are rewritten by toolchain.py to point at emulated_dynamic_shared.
#define __shared__ static __attribute__((section("emulated_shared")))
#define __constant__ static const

struct emulated_index {
  unsigned x, y, z;
};

extern "C" {
extern emulated_index emulated_thread, emulated_block, emulated_block_size, emulated_grid_size;
extern unsigned char* emulated_dynamic_shared;
void emulated_barrier();
void emulated_syncwarp(unsigned mask);
unsigned emulated_shuffle(const char* name, unsigned mask, unsigned value, int operand, int width);
unsigned emulated_ballot(unsigned mask, int predicate);
unsigned emulated_activemask();
void emulated_mma(const char* name, int depth, int x_signed, int w_signed, int* c,
                  const unsigned* a, const unsigned* b);
void emulated_ldmatrix(const char* name, int matrices, unsigned* d, const void* address);
void emulated_copy(void* shared, const void* global, int valid);
void emulated_copy_commit();
void emulated_copy_wait(int groups);

float fabsf(float), floorf(float), ceilf(float), truncf(float), roundf(float), rintf(float);
float nearbyintf(float), sqrtf(float), expf(float), exp2f(float), logf(float), tanhf(float);
float erff(float), fmaf(float, float, float), fminf(float, float), fmaxf(float, float);
float powf(float, float);
double fabs(double), floor(double), ceil(double), trunc(double), round(double), rint(double);
double nearbyint(double), sqrt(double), exp(double), log(double), tanh(double), erf(double);
double fma(double, double, double), fmin(double, double), fmax(double, double);
}

#define threadIdx emulated_thread
#define blockIdx emulated_block
#define blockDim emulated_block_size
#define gridDim emulated_grid_size
#define warpSize 32

// Vector types: the sizes and alignments of the CUDA C++ Programming Guide, "Built-in Vector Types".
// gcc checks an address where such a value is copied, clang only where a function gets a reference.
#ifdef __clang__
#define EMULATED_COPIES(name, parameters, fill, copy) \
  name() = default;                                   \
  name parameters { fill; }                           \
  name(const name& v) { copy; }                       \
  name& operator=(const name& v) {                    \
    copy;                                             \
    return *this;                                     \
  }
#else
#define EMULATED_COPIES(name, parameters, fill, copy)
#endif
#define EMULATED_VECTOR(name, type, alignment)                                                   \
  struct alignas(2 * alignment) name##2 {                                                        \
    type x, y;                                                                                   \
    EMULATED_COPIES(name##2, (type a, type b), x = a; y = b, x = v.x; y = v.y)                   \
  };                                                                                             \
  struct name##3 {                                                                               \
    type x, y, z;                                                                                \
    EMULATED_COPIES(name##3, (type a, type b, type c), x = a; y = b; z = c,                      \
                    x = v.x; y = v.y; z = v.z)                                                   \
  };                                                                                             \
  struct alignas(4 * alignment < 16 ? 4 * alignment : 16) name##4 {                              \
    type x, y, z, w;                                                                             \
    EMULATED_COPIES(name##4, (type a, type b, type c, type d), x = a; y = b; z = c; w = d,       \
                    x = v.x; y = v.y; z = v.z; w = v.w)                                          \
  };                                                                                             \
  static inline name##2 make_##name##2(type x, type y) { return {x, y}; }                        \
  static inline name##3 make_##name##3(type x, type y, type z) { return {x, y, z}; }             \
  static inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }

EMULATED_VECTOR(char, signed char, 1)
EMULATED_VECTOR(uchar, unsigned char, 1)
EMULATED_VECTOR(short, short, 2)
EMULATED_VECTOR(ushort, unsigned short, 2)
EMULATED_VECTOR(int, int, 4)
EMULATED_VECTOR(uint, unsigned, 4)
EMULATED_VECTOR(longlong, long long, 8)
EMULATED_VECTOR(ulonglong, unsigned long long, 8)
EMULATED_VECTOR(float, float, 4)
EMULATED_VECTOR(double, double, 8)

// Numbers of the same size as others.
template <class To, class From>
static inline To emulated_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "expected types of the same size");
  To to;
  __builtin_memcpy(&to, &from, sizeof(To));
  return to;
}
static inline float __int_as_float(int v) { return emulated_bits<float>(v); }
static inline int __float_as_int(float v) { return emulated_bits<int>(v); }
static inline float __uint_as_float(unsigned v) { return emulated_bits<float>(v); }
static inline unsigned __float_as_uint(float v) { return emulated_bits<unsigned>(v); }
static inline double __longlong_as_double(long long v) { return emulated_bits<double>(v); }
static inline long long __double_as_longlong(double v) { return emulated_bits<long long>(v); }

// As in CUDA, the other operand where one is NaN.
#define EMULATED_MIN_MAX(type)                                           \
  static inline type min(type a, type b) { return b < a ? b : a; }       \
  static inline type max(type a, type b) { return a < b ? b : a; }
EMULATED_MIN_MAX(int)
EMULATED_MIN_MAX(unsigned)
EMULATED_MIN_MAX(long)
EMULATED_MIN_MAX(unsigned long)
EMULATED_MIN_MAX(long long)
EMULATED_MIN_MAX(unsigned long long)
static inline float min(float a, float b) { return fminf(a, b); }
static inline float max(float a, float b) { return fmaxf(a, b); }
static inline double min(double a, double b) { return fmin(a, b); }
static inline double max(double a, double b) { return fmax(a, b); }
static inline int abs(int v) { return __builtin_abs(v); }

// Conversions saturate, and NaN is 0.
static inline int emulated_to_int(float rounded) {
  if (rounded != rounded) return 0;
  if (rounded >= 2147483648.0f) return 2147483647;
  return rounded < -2147483648.0f ? -2147483647 - 1 : (int)rounded;
}
static inline int __float2int_rn(float v) { return emulated_to_int(rintf(v)); }
static inline int __float2int_rz(float v) { return emulated_to_int(truncf(v)); }
static inline int __float2int_rd(float v) { return emulated_to_int(floorf(v)); }
static inline float __int2float_rn(int v) { return (float)v; }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __frcp_rn(float a) { return 1.0f / a; }
static inline float __fsqrt_rn(float a) { return sqrtf(a); }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }

static inline int __popc(unsigned v) { return __builtin_popcount(v); }
static inline int __clz(int v) { return v ? __builtin_clz((unsigned)v) : 32; }
static inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  unsigned long long both = (unsigned long long)y << 32 | x;
  unsigned result = 0;
  for (int i = 0; i < 4; i++) {
    unsigned which = selector >> (4 * i);
    unsigned byte = both >> (8 * (which & 7)) & 0xFF;
    if (which & 8) byte = byte & 0x80 ? 0xFF : 0;
    result |= byte << (8 * i);
  }
  return result;
}

template <class T>
static inline T __ldg(const T* address) {
  return *address;
}
template <class T>
static inline T emulated_add(T* address, T value) {
  T old = *address;
  *address = old + value;
  return old;
}
static inline int atomicAdd(int* address, int value) { return emulated_add(address, value); }
static inline unsigned atomicAdd(unsigned* address, unsigned value) {
  return emulated_add(address, value);
}
static inline float atomicAdd(float* address, float value) { return emulated_add(address, value); }
static inline int atomicMax(int* address, int value) {
  int old = *address;
  *address = max(old, value);
  return old;
}
static inline void __threadfence() {}
static inline void __threadfence_block() {}

// Barriers and collectives.
static inline void __syncthreads() { emulated_barrier(); }
static inline void __syncwarp(unsigned mask = 0xFFFFFFFFu) { emulated_syncwarp(mask); }
static inline unsigned __activemask() { return emulated_activemask(); }
static inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return emulated_ballot(mask, predicate);
}
#define EMULATED_SHUFFLE(name)                                                    \
  template <class T>                                                              \
  static inline T name(unsigned mask, T value, int operand, int width = 32) {     \
    return emulated_bits<T>(                                                      \
        emulated_shuffle(#name, mask, emulated_bits<unsigned>(value), operand, width)); \
  }
EMULATED_SHUFFLE(__shfl_sync)
EMULATED_SHUFFLE(__shfl_up_sync)
EMULATED_SHUFFLE(__shfl_down_sync)
EMULATED_SHUFFLE(__shfl_xor_sync)

// Dot products of four bytes; int addition wraps.
template <class X, class W>
static inline int emulated_dp4a(unsigned x, unsigned w, int c) {
  for (int i = 0; i < 4; i++) c += (int)(X)(x >> (8 * i)) * (int)(W)(w >> (8 * i));
  return c;
}
static inline int __dp4a(int x, int w, int c) {
  return emulated_dp4a<signed char, signed char>(x, w, c);
}
static inline unsigned __dp4a(unsigned x, unsigned w, unsigned c) {
  return emulated_dp4a<unsigned char, unsigned char>(x, w, c);
}

// The functions of quantmm/compiler/cuda_prelude.py, which says what they mean.
#define EMULATED_SIGNS(x, X, xs, w, W, ws)                                                   \
  static inline int qmm_dp4a_##x##w(unsigned a, unsigned b, int c) {                         \
    return emulated_dp4a<X, W>(a, b, c);                                                     \
  }                                                                                          \
  static inline void qmm_mma_m16n8k32_##x##w(int* c, const unsigned* a, const unsigned* b) { \
    emulated_mma("qmm_mma_m16n8k32_" #x #w, 32, xs, ws, c, a, b);                            \
  }                                                                                          \
  static inline void qmm_mma_m8n8k16_##x##w(int* c, const unsigned* a, const unsigned* b) {  \
    emulated_mma("qmm_mma_m8n8k16_" #x #w, 16, xs, ws, c, a, b);                             \
  }
EMULATED_SIGNS(s8, signed char, 1, s8, signed char, 1)
EMULATED_SIGNS(s8, signed char, 1, u8, unsigned char, 0)
EMULATED_SIGNS(u8, unsigned char, 0, s8, signed char, 1)
EMULATED_SIGNS(u8, unsigned char, 0, u8, unsigned char, 0)

#define EMULATED_LDMATRIX(n)                                                   \
  static inline void qmm_ldmatrix_x##n(unsigned* d, const void* shared) {      \
    emulated_ldmatrix("qmm_ldmatrix_x" #n, n, d, shared);                      \
  }
EMULATED_LDMATRIX(2)
EMULATED_LDMATRIX(4)

static inline void qmm_cp_async_16(void* shared, const void* global) {
  emulated_copy(shared, global, 1);
}
static inline void qmm_cp_async_16_or_zero(void* shared, const void* global, int valid) {
  emulated_copy(shared, global, valid);
}
static inline void qmm_cp_async_commit() { emulated_copy_commit(); }
static inline void qmm_cp_async_wait_0() { emulated_copy_wait(0); }
static inline void qmm_cp_async_wait_1() { emulated_copy_wait(1); }
static inline void qmm_cp_async_wait_2() { emulated_copy_wait(2); }
static inline void qmm_cp_async_wait_3() { emulated_copy_wait(3); }
static inline void qmm_cp_async_wait_4() { emulated_copy_wait(4); }

static inline unsigned qmm_lo4(unsigned v) { return (v << 4) & 0xF0F0F0F0u; }
static inline unsigned qmm_hi4(unsigned v) { return v & 0xF0F0F0F0u; }
static inline unsigned qmm_lo4u(unsigned v) { return v & 0x0F0F0F0Fu; }
static inline unsigned qmm_hi4u(unsigned v) { return (v >> 4) & 0x0F0F0F0Fu; }
static inline unsigned qmm_own(unsigned v) { return v; }
static inline uint4 qmm_load_16(const void* global) { return *(const uint4*)global; }

// How a kernel is called: with pointers to its arguments, as cuLaunchKernel is. Each parameter's kind
// is a letter of Python's struct module; P is a pointer.
template <class T>
struct emulated_kind;
template <class T>
struct emulated_kind<T*> {
  static const char value = 'P';
};
#define EMULATED_KIND(type, letter)       \
  template <>                             \
  struct emulated_kind<type> {            \
    static const char value = letter;     \
  };
EMULATED_KIND(signed char, 'b')
EMULATED_KIND(unsigned char, 'B')
EMULATED_KIND(short, 'h')
EMULATED_KIND(unsigned short, 'H')
EMULATED_KIND(int, 'i')
EMULATED_KIND(unsigned, 'I')
EMULATED_KIND(long, 'q')
EMULATED_KIND(unsigned long, 'Q')
EMULATED_KIND(long long, 'q')
EMULATED_KIND(unsigned long long, 'Q')
EMULATED_KIND(float, 'f')
EMULATED_KIND(double, 'd')

template <int... i>
struct emulated_indices {};
template <int n, int... i>
struct emulated_range : emulated_range<n - 1, n - 1, i...> {};
template <int... i>
struct emulated_range<0, i...> {
  typedef emulated_indices<i...> type;
};
template <class... A, int... i>
static inline void emulated_call(void (*kernel)(A...), void** a, emulated_indices<i...>) {
  kernel(*(A*)a[i]...);
}
template <class... A>
static inline void emulated_call(void (*kernel)(A...), void** a) {
  emulated_call(kernel, a, typename emulated_range<sizeof...(A)>::type());
}
template <class... A>
static inline const char* emulated_kinds(void (*)(A...)) {
  static const char kinds[] = {emulated_kind<A>::value..., 0};
  return kinds;
}
#define EMULATED_KERNEL(name)                                                 \
  extern "C" void emulated_call_##name(void** a) { emulated_call(name, a); } \
  extern "C" const char* emulated_kinds_##name() { return emulated_kinds(name); }

// The block's static arrays, for poisoning; null where a program has none.
extern "C" char __start_emulated_shared[] __attribute__((weak, visibility("hidden")));
extern "C" char __stop_emulated_shared[] __attribute__((weak, visibility("hidden")));
extern "C" void* emulated_shared_begin() { return __start_emulated_shared; }
extern "C" void* emulated_shared_end() { return __stop_emulated_shared; }
