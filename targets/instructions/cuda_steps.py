"""What a warp or a thread does in one step of `CudaLayout`, in CUDA C++.

Written over the primitives of `cuda_prelude`, so that a CPU runs the same text where those are
replaced by their meaning.
"""

from __future__ import annotations

STEPS = r"""
// The names under which TVM's code generator calls asynchronous copies.
static __device__ __forceinline__ void ptx_cp_async_legacy_cg_16_1_1(
    void* to, int to_offset, const void* from, int from_offset) {
  qmm_cp_async_16((char*)to + to_offset, (const char*)from + from_offset);
}
#define tvm_builtin_ptx_cp_async_commit_group_async_commit_group qmm_cp_async_commit
#define tvm_builtin_ptx_cp_async_wait_group_async_wait_group_0 qmm_cp_async_wait_0
#define tvm_builtin_ptx_cp_async_wait_group_async_wait_group_1 qmm_cp_async_wait_1
#define tvm_builtin_ptx_cp_async_wait_group_async_wait_group_2 qmm_cp_async_wait_2
#define tvm_builtin_ptx_cp_async_wait_group_async_wait_group_3 qmm_cp_async_wait_3
#define tvm_builtin_ptx_cp_async_wait_group_async_wait_group_4 qmm_cp_async_wait_4

// The words of a lane's quarter of a row.
template <int words>
static __device__ __forceinline__ void qmm_words(unsigned* to, const unsigned char* from) {
  if (words == 4) {
    uint4 v = *(const uint4*)from;
    to[0] = v.x; to[1] = v.y; to[2] = v.z; to[3] = v.w;
  } else if (words == 2) {
    uint2 v = *(const uint2*)from;
    to[0] = v.x; to[1] = v.y;
  } else {
    to[0] = *(const unsigned*)from;
  }
}

// 16 rows, 8 columns, 32 k, in registers as mma.m16n8k32 has them.
#if __CUDA_ARCH__ >= 800
#define QMM_WORD(v) qmm_own(v)
#define QMM_PRODUCT(SIGNS, c, a, b) qmm_mma_m16n8k32_##SIGNS(c, a, b);
#else
#define QMM_WORD(v) (v)
#define QMM_PRODUCT(SIGNS, c, a, b)                 \
  for (int k = 0; k < 2; ++k)                       \
    for (int r = 0; r < 2; ++r)                     \
      qmm_mma_m8n8k16_##SIGNS((c) + 2 * r, (a) + 2 * k + r, (b) + k);
#endif

// Rows g and g + 8 of a piece of X, for as many products as the piece is deep.
// Four words stand side by side there. ldmatrix brings them so, out of rows of 16 bytes without a
// conflict of banks. Of longer rows, one load of 16 or 8 bytes brings what two products want, and
// QMM_WORD puts it together, for all columns once: left to itself the compiler copies it for each.
template <int words>
static __device__ __forceinline__ void qmm_rows(unsigned (*a)[4], const unsigned char* x) {
  if constexpr (words == 1) {
    qmm_ldmatrix_x2(a[0], x + threadIdx.x % 16 * 16);
    a[0][2] = a[0][3] = 0;
  } else {
    unsigned low[words], high[words];
    qmm_words<words>(low, x + threadIdx.x * (4 * words));
    qmm_words<words>(high, x + 8 * 16 * words + threadIdx.x * (4 * words));
    for (int j = 0; j < words; j += 2) {
      unsigned* to = a[j / 2];
      to[0] = QMM_WORD(low[j]); to[1] = QMM_WORD(high[j]);
      to[2] = QMM_WORD(low[j + 1]); to[3] = QMM_WORD(high[j + 1]);
    }
  }
}

// A step with blocks of columns that lie `apart`; with 4 bits, its halves of X lie `half` apart.
#define QMM_STEPS(SIGNS)                                                                        \
  template <int words>                                                                          \
  static __device__ __forceinline__ void qmm_bytes_##SIGNS(                                     \
      int* c, const void* x, const void* w, int apart, int blocks) {                            \
    unsigned a[(words + 1) / 2][4];                                                             \
    qmm_rows<words>(a, (const unsigned char*)x);                                                \
    const unsigned char* columns = (const unsigned char*)w + threadIdx.x * (4 * words);         \
    _Pragma("unroll") for (int n = 0; n < blocks; ++n) {                                        \
      unsigned b[words + words % 2] = {};                                                       \
      qmm_words<words>(b, columns + n * apart);                                                 \
      for (int j = 0; j < words; j += 2) { QMM_PRODUCT(SIGNS, c + 4 * n, a[j / 2], b + j) }     \
    }                                                                                           \
  }                                                                                             \
  template <int words>                                                                          \
  static __device__ __forceinline__ void qmm_nibbles_##SIGNS(                                   \
      int* c, const void* x, int half, const void* w, int apart, int blocks) {                  \
    const unsigned char* rows = (const unsigned char*)x;                                        \
    unsigned a[2][(words + 1) / 2][4];                                                          \
    if constexpr (words == 1) {                                                                 \
      qmm_ldmatrix_x4(a[0][0], rows + threadIdx.x / 16 * half + threadIdx.x % 16 * 16);         \
    } else {                                                                                    \
      qmm_rows<words>(a[0], rows);                                                              \
      qmm_rows<words>(a[1], rows + half);                                                       \
    }                                                                                           \
    const unsigned char* columns = (const unsigned char*)w + threadIdx.x * (4 * words);         \
    _Pragma("unroll") for (int n = 0; n < blocks; ++n) {                                        \
      unsigned b[words], halves[2][words];                                                      \
      qmm_words<words>(b, columns + n * apart);                                                 \
      for (int j = 0; j < words; ++j) {                                                         \
        halves[0][j] = qmm_lo4(b[j]);                                                           \
        halves[1][j] = qmm_hi4(b[j]);                                                           \
      }                                                                                         \
      if constexpr (words == 1) {                                                               \
        unsigned both[2] = {halves[0][0], halves[1][0]};                                        \
        QMM_PRODUCT(SIGNS, c + 4 * n, a[0][0], both)                                            \
      } else {                                                                                  \
        for (int h = 0; h < 2; ++h)                                                             \
          for (int j = 0; j < words; j += 2) {                                                  \
            QMM_PRODUCT(SIGNS, c + 4 * n, a[h][j / 2], halves[h] + j)                           \
          }                                                                                     \
      }                                                                                         \
    }                                                                                           \
  }                                                                                             \
  QMM_SIZES(SIGNS, 64, 4)                                                                       \
  QMM_SIZES(SIGNS, 32, 2)                                                                       \
  QMM_SIZES(SIGNS, 16, 1)

// A lane's quarter of a streamed column, which no other block reads: it need not stay in L1.
template <int words>
static __device__ __forceinline__ void qmm_streamed_words(unsigned* to, const unsigned char* from) {
  if (words == 4) {
    uint4 v = qmm_load_16(from);
    to[0] = v.x; to[1] = v.y; to[2] = v.z; to[3] = v.w;
  } else {
    qmm_words<words>(to, from);
  }
}

// The sum over four lanes, in all of them.
static __device__ __forceinline__ int qmm_sum_quarters(int sum) {
  sum += __shfl_xor_sync(0xffffffffu, sum, 1);
  return sum + __shfl_xor_sync(0xffffffffu, sum, 2);
}

#define QMM_DOTS(SIGNS, WORDS_OF, NAME)                                                         \
  template <int words>                                                                          \
  static __device__ __forceinline__ void qmm_##NAME##_bytes_##SIGNS(                            \
      int* c, const void* x, const void* w) {                                                   \
    unsigned a[words], b[words];                                                                \
    qmm_words<words>(a, (const unsigned char*)x + (threadIdx.x & 3) * (4 * words));             \
    WORDS_OF<words>(b, (const unsigned char*)w + threadIdx.x * (4 * words));                    \
    for (int j = 0; j < words; ++j) *c = qmm_dp4a_##SIGNS(a[j], b[j], *c);                      \
  }                                                                                             \
  template <int words>                                                                          \
  static __device__ __forceinline__ void qmm_##NAME##_nibbles_##SIGNS(                          \
      int* c, const void* x, int half, const void* w) {                                         \
    unsigned a[words], b[words];                                                                \
    WORDS_OF<words>(b, (const unsigned char*)w + threadIdx.x * (4 * words));                    \
    for (int h = 0; h < 2; ++h) {                                                               \
      qmm_words<words>(                                                                         \
          a, (const unsigned char*)x + h * half + (threadIdx.x & 3) * (4 * words));             \
      for (int j = 0; j < words; ++j)                                                           \
        *c = qmm_dp4a_##SIGNS(a[j], h ? qmm_hi4(b[j]) : qmm_lo4(b[j]), *c);                     \
    }                                                                                           \
  }                                                                                             \
  QMM_DOT_SIZES(SIGNS, NAME, 64, 4)                                                             \
  QMM_DOT_SIZES(SIGNS, NAME, 32, 2)                                                             \
  QMM_DOT_SIZES(SIGNS, NAME, 16, 1)

#define QMM_DOT_SIZES(SIGNS, NAME, PIECE, WORDS)                                                \
  static __device__ __forceinline__ void qmm_##NAME##_8_##PIECE##_##SIGNS(                      \
      int* c, const void* x, const void* w) { qmm_##NAME##_bytes_##SIGNS<WORDS>(c, x, w); }     \
  static __device__ __forceinline__ void qmm_##NAME##_4_##PIECE##_##SIGNS(                      \
      int* c, const void* x, int half, const void* w) {                                         \
    qmm_##NAME##_nibbles_##SIGNS<WORDS>(c, x, half, w);                                         \
  }

#define QMM_SIZES(SIGNS, PIECE, WORDS)                                                          \
  static __device__ __forceinline__ void qmm_mma_8_##PIECE##_##SIGNS(                           \
      int* c, const void* x, const void* w, int apart, int blocks) {                            \
    qmm_bytes_##SIGNS<WORDS>(c, x, w, apart, blocks);                                           \
  }                                                                                             \
  static __device__ __forceinline__ void qmm_mma_4_##PIECE##_##SIGNS(                           \
      int* c, const void* x, int half, const void* w, int apart, int blocks) {                  \
    qmm_nibbles_##SIGNS<WORDS>(c, x, half, w, apart, blocks);                                   \
  }

QMM_STEPS(s8s8)
QMM_DOTS(s8s8, qmm_words, dot)
QMM_DOTS(s8s8, qmm_streamed_words, stream)
QMM_STEPS(s8u8)
QMM_DOTS(s8u8, qmm_words, dot)
QMM_DOTS(s8u8, qmm_streamed_words, stream)
QMM_STEPS(u8s8)
QMM_DOTS(u8s8, qmm_words, dot)
QMM_DOTS(u8s8, qmm_streamed_words, stream)
QMM_STEPS(u8u8)
QMM_DOTS(u8u8, qmm_words, dot)
QMM_DOTS(u8u8, qmm_streamed_words, stream)
"""
