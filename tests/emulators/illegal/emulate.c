/* Executes in software the instructions that this CPU lacks, so that tests can run code for it.

   An instruction that the CPU does not know raises SIGILL. The handler below decodes it, does to
   the interrupted thread's registers and memory what the instruction would have done, and returns
   behind it. Emulated are AMX-INT8 (tiles), AVX-VNNI and AVX-VNNI-INT8, all of them VEX-encoded.

   What breaks a rule of the architecture, or is no instruction of KINDS, is reported on stderr;
   then the action that SIGILL had before is put back and the instruction raises it again, which
   ends the process. So wrong code does not pass here and fail on the chip.

   The signal is synchronous: it interrupts the code under test, never malloc or stdio. So the
   handler may use snprintf and thread-local variables.

   References are to the Intel 64 and IA-32 Architectures Software Developer's Manual ("SDM"). */

#define _GNU_SOURCE
#include <cpuid.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <ucontext.h>
#include <unistd.h>

/* Why an instruction was not executed; NULL when it was. */
typedef const char *Problem;

static Problem refuse(const char *format, ...)
{
    static __thread char text[200];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    return text;
}

/* ---- Decoding: SDM vol. 2, 2.3.5 "The VEX Prefix" and 2.1.5 "Addressing-Mode Encoding" ---- */

/* VEX.pp, the place of the prefixes 66, F3 and F2. The opcodes here use it for the signs of the
   operands: bit 1 is set where the first factor is signed, bit 0 where the second one is. */
enum { PP_NONE, PP_66, PP_F3, PP_F2 };

struct Instruction {
    int prefix;            /* VEX.pp */
    bool wide;             /* VEX.L: 256 bits */
    bool saturating;       /* opcode 51 beside 50 */
    int reg, vvvv, rm;     /* numbers of registers; rm unless `memory` */
    bool memory, sib;      /* the last operand is in memory; its address has an SIB byte */
    unsigned char *base;   /* base plus displacement */
    int64_t index;         /* the scaled index: tiles take it as the distance of their rows */
    unsigned char *xsave;  /* the interrupted thread's vector registers */
    const unsigned char *next;
};

/* ucontext's names of the general-purpose registers, in the order of their numbers. */
static const int GENERAL[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
                                REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
                                REG_R12, REG_R13, REG_R14, REG_R15};

static void decode(const unsigned char *code, const greg_t *general, struct Instruction *in)
{
    /* R, X, B and vvvv are stored inverted. */
    int r = ~code[1] >> 4 & 8, x = ~code[1] >> 3 & 8, b = ~code[1] >> 2 & 8;
    int mod = code[4] >> 6, low = code[4] & 7;

    in->prefix = code[2] & 3;
    in->wide = code[2] >> 2 & 1;
    in->vvvv = ~code[2] >> 3 & 15;
    in->saturating = code[3] & 1;
    in->reg = (code[4] >> 3 & 7) | r;
    in->rm = low | b;
    in->memory = mod != 3;
    in->sib = in->memory && low == 4;
    in->index = 0;
    in->next = code + 5;
    if (!in->memory)
        return;

    uint64_t address = 0;
    int displacement = mod == 1 ? 1 : mod == 2 ? 4 : 0; /* its size in bytes */
    bool relative = false;
    if (in->sib) {
        int scale = *in->next >> 6, index = (*in->next >> 3 & 7) | x, base = *in->next & 7;
        in->next++;
        if (index != 4)
            in->index = (int64_t)((uint64_t)general[GENERAL[index]] << scale);
        if (base == 5 && mod == 0)
            displacement = 4;
        else
            address = general[GENERAL[base | b]];
    } else if (low == 5 && mod == 0) {
        displacement = 4;
        relative = true;
    } else {
        address = general[GENERAL[in->rm]];
    }
    if (displacement == 1) {
        address += (int8_t)*in->next;
    } else if (displacement == 4) {
        int32_t value;
        memcpy(&value, in->next, 4);
        address += value;
    }
    in->next += displacement;
    if (relative)
        address += (uint64_t)in->next;
    in->base = (unsigned char *)address;
}

/* ---- Vector registers: SDM vol. 1, 13.4 "XSAVE Area" and Linux' asm/sigcontext.h ---- */

enum { SSE = 1, AVX = 2, ZMM_HI256 = 6 }; /* components: bits 0-127, 128-255 and 256-511 */
enum { XMM_OFFSET = 160, MAGIC_OFFSET = 464, FEATURES_OFFSET = 472, XSTATE_BV_OFFSET = 512 };
enum { FRAME_MAGIC = 0x46505853 }; /* the frame has more than the legacy area */

static unsigned avx_offset, zmm_hi256_offset;

static uint64_t load64(const unsigned char *from)
{
    uint64_t value;
    memcpy(&value, from, 8);
    return value;
}

static bool in_use(const unsigned char *xsave, int component)
{
    return load64(xsave + XSTATE_BV_OFFSET) >> component & 1;
}

/* Registers 0 to 15 of the SSE or AVX component, 16 bytes each. A component that is not in use is
   all zeros whatever its bytes say; it is brought into use, so that it can be written too. */
static unsigned char *registers(unsigned char *xsave, int component)
{
    unsigned char *start = xsave + (component == SSE ? XMM_OFFSET : avx_offset);
    if (!in_use(xsave, component)) {
        uint64_t bits = load64(xsave + XSTATE_BV_OFFSET) | 1u << component;
        memset(start, 0, 16 * 16);
        memcpy(xsave + XSTATE_BV_OFFSET, &bits, 8);
    }
    return start;
}

static void read_vector(unsigned char *xsave, int number, void *to)
{
    memcpy(to, registers(xsave, SSE) + 16 * number, 16);
    memcpy((char *)to + 16, registers(xsave, AVX) + 16 * number, 16);
}

/* A VEX-encoded instruction zeroes what lies above the vector that it writes. */
static void write_vector(unsigned char *xsave, int number, const void *from)
{
    memcpy(registers(xsave, SSE) + 16 * number, from, 16);
    memcpy(registers(xsave, AVX) + 16 * number, (const char *)from + 16, 16);
    if (load64(xsave + FEATURES_OFFSET) >> ZMM_HI256 & 1 && in_use(xsave, ZMM_HI256))
        memset(xsave + zmm_hi256_offset + 32 * number, 0, 32);
}

static int byte(unsigned char value, bool is_signed)
{
    return is_signed ? (int8_t)value : value;
}

/* SDM vol. 2, "VPDPBUSD", "VPDPBUSDS" and "VPDPB[SU,UU,SS]D[,S]":
   VEX.{128,256}.{NP,66,F3,F2}.0F38.W0 {50,51} /r; VEX.vvvv is the first factor. */
static Problem vector_dot(const struct Instruction *in)
{
    uint32_t magic;
    memcpy(&magic, in->xsave + MAGIC_OFFSET, 4);
    if (magic != FRAME_MAGIC || !(load64(in->xsave + FEATURES_OFFSET) >> AVX & 1))
        return "this CPU has no AVX registers";

    bool a_signed = in->prefix & 2, b_signed = in->prefix & 1;
    int lanes = in->wide ? 8 : 4;
    unsigned char a[32], b[32];
    uint32_t sums[8];
    read_vector(in->xsave, in->vvvv, a);
    read_vector(in->xsave, in->reg, sums);
    if (in->memory)
        memcpy(b, in->base + in->index, 4 * lanes);
    else
        read_vector(in->xsave, in->rm, b);

    for (int lane = 0; lane < lanes; lane++) {
        int32_t dot = 0;
        for (int i = 4 * lane; i < 4 * lane + 4; i++)
            dot += byte(a[i], a_signed) * byte(b[i], b_signed);
        if (!in->saturating) {
            sums[lane] += dot;
        } else if (a_signed || b_signed) {
            int64_t sum = (int64_t)(int32_t)sums[lane] + dot;
            sums[lane] = sum > INT32_MAX ? INT32_MAX : sum < INT32_MIN ? INT32_MIN : sum;
        } else {
            int64_t sum = (int64_t)sums[lane] + dot;
            sums[lane] = sum > UINT32_MAX ? UINT32_MAX : sum;
        }
    }
    memset(sums + lanes, 0, 32 - 4 * lanes);
    write_vector(in->xsave, in->reg, sums);
    return NULL;
}

/* ---- Tiles: SDM vol. 1, 18 "Programming with Intel AMX", and vol. 2 under the names ---- */

enum { TILES = 8, ROWS = 16, ROW_BYTES = 64 }; /* of palette 1 */

struct Tiles {
    unsigned session;
    bool configured;
    unsigned char configuration[64];
    int rows[TILES], colsb[TILES]; /* 0 where the configuration leaves a tile out */
    unsigned char data[TILES][ROWS][ROW_BYTES];
};

static unsigned session; /* counts calls of emulation_start */

/* This thread's tiles. Nothing is left from an earlier test in it. */
static struct Tiles *tiles(void)
{
    static __thread struct Tiles mine;
    if (mine.session != session) {
        memset(&mine, 0, sizeof mine);
        mine.session = session;
    }
    return &mine;
}

static bool all_zero(const unsigned char *bytes, int first, int end)
{
    while (first < end)
        if (bytes[first++])
            return false;
    return true;
}

/* VEX.128.NP.0F38.W0 49 !(11):000:bbb */
static Problem ldtilecfg(const struct Instruction *in)
{
    const unsigned char *from = in->base + in->index;
    struct Tiles *t = tiles();
    memset(t, 0, sizeof *t);
    t->session = session;
    if (from[0] == 0)
        return NULL;
    if (from[0] != 1)
        return refuse("palette %d; only 0 and 1 exist", from[0]);
    if (from[1])
        return refuse("start_row is %d; only 0 is emulated", from[1]);
    if (!all_zero(from, 2, 16) || !all_zero(from, 32, 48) || !all_zero(from, 56, 64))
        return "reserved bytes are not zero";
    for (int tile = 0; tile < TILES; tile++) {
        int colsb = from[16 + 2 * tile] | from[17 + 2 * tile] << 8, rows = from[48 + tile];
        if (rows > ROWS || colsb > ROW_BYTES || !rows != !colsb)
            return refuse("tile %d has %d rows of %d bytes", tile, rows, colsb);
        t->rows[tile] = rows;
        t->colsb[tile] = colsb;
    }
    memcpy(t->configuration, from, 64);
    t->configured = true;
    return NULL;
}

/* VEX.128.66.0F38.W0 49 !(11):000:bbb */
static Problem sttilecfg(const struct Instruction *in)
{
    memcpy(in->base + in->index, tiles()->configuration, 64);
    return NULL;
}

/* VEX.128.NP.0F38.W0 49 C0 */
static Problem tilerelease(const struct Instruction *in)
{
    memset(tiles(), 0, sizeof(struct Tiles));
    (void)in;
    return NULL;
}

/* Whether an instruction may use a tile: the #UD conditions of SDM vol. 2, 2.10 "Intel AMX
   Instruction Exception Classes". */
static Problem check_tile(int tile)
{
    const struct Tiles *t = tiles();
    if (!t->configured)
        return "tiles are not configured";
    if (tile >= TILES)
        return refuse("there is no tile %d", tile);
    if (!t->rows[tile])
        return refuse("tile %d is not in the configuration", tile);
    if (t->colsb[tile] % 4)
        return refuse("tile %d has rows of %d bytes, no multiple of 4", tile, t->colsb[tile]);
    return NULL;
}

/* VEX.128.F2.0F38.W0 49 11:rrr:000 */
static Problem tilezero(const struct Instruction *in)
{
    Problem problem = check_tile(in->reg);
    if (!problem)
        memset(tiles()->data[in->reg], 0, ROWS * ROW_BYTES);
    return problem;
}

/* VEX.128.{F2,66,F3}.0F38.W0 4B !(11):rrr:100; F3 stores, the others load, 66 past the cache.
   Nothing is to be zeroed beyond the configured size: it is zero since the configuration. */
static Problem tile_move(const struct Instruction *in)
{
    Problem problem = in->sib ? check_tile(in->reg) : "the address has no SIB byte";
    if (problem)
        return problem;
    struct Tiles *t = tiles();
    bool store = in->prefix == PP_F3;
    for (int row = 0; row < t->rows[in->reg]; row++) {
        unsigned char *memory = in->base + row * in->index, *tile = t->data[in->reg][row];
        memcpy(store ? memory : tile, store ? tile : memory, t->colsb[in->reg]);
    }
    return NULL;
}

/* VEX.128.{NP,66,F3,F2}.0F38.W0 5E 11:rrr:bbb; ModRM.rm is the first factor (rows of X), VEX.vvvv
   the second one (4 bytes of each column in every row). */
static Problem tile_dot(const struct Instruction *in)
{
    int c = in->reg, a = in->rm, b = in->vvvv;
    struct Tiles *t = tiles();
    Problem problem = check_tile(c);
    if (!problem)
        problem = check_tile(a);
    if (!problem)
        problem = check_tile(b);
    if (problem)
        return problem;
    if (c == a || c == b || a == b)
        return refuse("tiles %d, %d and %d must differ", c, a, b);
    int m = t->rows[c], n = t->colsb[c] / 4, k = t->colsb[a] / 4;
    if (t->rows[a] != m || t->rows[b] != k || t->colsb[b] != 4 * n)
        return refuse("a product of %d x %d and %d x %d bytes has no %d x %d sums", t->rows[a],
                      t->colsb[a], t->rows[b], t->colsb[b], m, n);

    /* Widened, so that a dot product is one loop over K that compilers know: pmaddwd, even without
       AVX. Tiles are zero beyond their configured size, so that loop always has its full length. */
    int16_t columns[ROWS][ROW_BYTES];
    for (int column = 0; column < n; column++)
        for (int i = 0; i < ROW_BYTES; i++)
            columns[column][i] = byte(t->data[b][i / 4][4 * column + i % 4], in->prefix & 1);
    for (int row = 0; row < m; row++) {
        int16_t x[ROW_BYTES];
        uint32_t sums[ROW_BYTES / 4];
        for (int i = 0; i < ROW_BYTES; i++)
            x[i] = byte(t->data[a][row][i], in->prefix & 2);
        memcpy(sums, t->data[c][row], ROW_BYTES);
        for (int column = 0; column < n; column++) {
            int32_t dot = 0;
            for (int i = 0; i < ROW_BYTES; i++)
                dot += x[i] * columns[column][i];
            sums[column] += dot;
        }
        memcpy(t->data[c][row], sums, ROW_BYTES);
    }
    return NULL;
}

/* ---- The table of instructions, and the signal ---- */

enum Form { MEMORY, REGISTER, EITHER };

static const struct Kind {
    const char *name;
    unsigned char opcode, prefix;
    enum Form form;
    unsigned char fixed; /* bits of ModRM that must be 0 */
    Problem (*execute)(const struct Instruction *);
} KINDS[] = {
    {"ldtilecfg", 0x49, PP_NONE, MEMORY, 070, ldtilecfg},
    {"sttilecfg", 0x49, PP_66, MEMORY, 070, sttilecfg},
    {"tilerelease", 0x49, PP_NONE, REGISTER, 077, tilerelease},
    {"tilezero", 0x49, PP_F2, REGISTER, 007, tilezero},
    {"tileloadd", 0x4B, PP_F2, MEMORY, 0, tile_move},
    {"tileloaddt1", 0x4B, PP_66, MEMORY, 0, tile_move},
    {"tilestored", 0x4B, PP_F3, MEMORY, 0, tile_move},
    {"tdpbuud", 0x5E, PP_NONE, REGISTER, 0, tile_dot},
    {"tdpbusd", 0x5E, PP_66, REGISTER, 0, tile_dot},
    {"tdpbsud", 0x5E, PP_F3, REGISTER, 0, tile_dot},
    {"tdpbssd", 0x5E, PP_F2, REGISTER, 0, tile_dot},
    {"vpdpbuud", 0x50, PP_NONE, EITHER, 0, vector_dot},
    {"vpdpbusd", 0x50, PP_66, EITHER, 0, vector_dot},
    {"vpdpbsud", 0x50, PP_F3, EITHER, 0, vector_dot},
    {"vpdpbssd", 0x50, PP_F2, EITHER, 0, vector_dot},
    {"vpdpbuuds", 0x51, PP_NONE, EITHER, 0, vector_dot},
    {"vpdpbusds", 0x51, PP_66, EITHER, 0, vector_dot},
    {"vpdpbsuds", 0x51, PP_F3, EITHER, 0, vector_dot},
    {"vpdpbssds", 0x51, PP_F2, EITHER, 0, vector_dot},
};
enum { KIND_COUNT = sizeof KINDS / sizeof *KINDS };

static uint64_t *counts; /* the caller's, one per kind */
static bool marked;      /* see emulation_start */
static bool active, native_tiles;
static struct sigaction previous;

static bool of_tiles(const struct Kind *kind)
{
    return kind->execute != vector_dot;
}

/* The kind of the instruction at `code`; NULL when it is none of them. */
static const struct Kind *find(const unsigned char *code)
{
    if (code[0] != 0xC4 || (code[1] & 0x1F) != 2 /* 0F38 */ || code[2] & 0x80 /* W */)
        return NULL;
    bool no_vvvv = (code[2] & 0x78) == 0x78, narrow = !(code[2] & 4);
    for (const struct Kind *kind = KINDS; kind < KINDS + KIND_COUNT; kind++) {
        bool dot = kind->execute == vector_dot || kind->execute == tile_dot;
        if (kind->opcode == code[3] && kind->prefix == (code[2] & 3) &&
            (kind->form == EITHER || (kind->form == REGISTER) == (code[4] >= 0xC0)) &&
            !(code[4] & kind->fixed) && (dot || no_vvvv) && (narrow || !of_tiles(kind)))
            return kind;
    }
    return NULL;
}

/* Executes the instruction that raised the signal, and those right behind it that this CPU must
   lack too: a signal costs more than most of them. */
static void on_sigill(int number, siginfo_t *info, void *context)
{
    ucontext_t *frame = context;
    greg_t *general = frame->uc_mcontext.gregs;
    const unsigned char *code = (const unsigned char *)general[REG_RIP];
    if (marked && code[0] == 0x0F && code[1] == 0x0B)
        code += 2;

    const struct Kind *kind = find(code);
    struct Instruction in = {.xsave = (unsigned char *)frame->uc_mcontext.fpregs};
    Problem problem = NULL;
    if (!kind)
        problem = "this instruction is not emulated";
    else if (native_tiles && of_tiles(kind))
        problem = "this CPU has AMX, and refuses; has the process asked for it (arch_prctl)?";
    while (!problem) {
        decode(code, general, &in);
        problem = kind->execute(&in);
        if (problem)
            break;
        __atomic_fetch_add(&counts[kind - KINDS], 1, __ATOMIC_RELAXED);
        general[REG_RIP] = (greg_t)in.next;
        const struct Kind *next = find(code = in.next);
        if (!next || (next != kind && !(of_tiles(next) && of_tiles(kind))))
            return;
        kind = next;
    }

    const unsigned char *start = (const unsigned char *)general[REG_RIP];
    char line[320];
    int length = snprintf(line, sizeof line, "SIGILL at %p: %s%s%s:", (const void *)start,
                          kind ? kind->name : "", kind ? ": " : "", problem);
    /* The longest instruction has 15 bytes, but nothing says that there is a next page. */
    for (int i = 0; i < 15 && (i == 0 || ((uintptr_t)(start + i) & 4095)); i++)
        length += snprintf(line + length, sizeof line - length, " %02x", start[i]);
    line[length++] = '\n';
    ssize_t written = write(STDERR_FILENO, line, length);
    sigaction(SIGILL, &previous, NULL);
    (void)written, (void)number, (void)info;
}

/* Emulate from now on, in every thread, and count in `counters`, one number for each of
   emulated_name(). With `mark`, an instruction behind ud2 is emulated even where the CPU has it:
   that is how the tests compare this file with a CPU. Returns 0, or -1 when already active. */
int emulation_start(uint64_t *counters, int mark)
{
    unsigned a, b, c, d;
    if (active)
        return -1;
    if (__get_cpuid_count(0xD, AVX, &a, &b, &c, &d)) /* SDM vol. 1, 13.2: ebx is the offset */
        avx_offset = b;
    if (__get_cpuid_count(0xD, ZMM_HI256, &a, &b, &c, &d))
        zmm_hi256_offset = b;
    if (__get_cpuid(1, &a, &b, &c, &d) && c & bit_OSXSAVE) {
        __asm__("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
        native_tiles = (a >> 17 & 3) == 3;
    }
    counts = counters;
    marked = mark;
    session++;
    /* No SA_ONSTACK: Python's alternate stack is small, and only one thread has one. */
    struct sigaction action = {.sa_sigaction = on_sigill, .sa_flags = SA_SIGINFO};
    if (sigaction(SIGILL, &action, &previous))
        return -1;
    active = true;
    return 0;
}

void emulation_stop(void)
{
    sigaction(SIGILL, &previous, NULL);
    active = false;
}

/* The name of the i-th kind of instruction; NULL behind the last one. */
const char *emulated_name(int i)
{
    return i < KIND_COUNT ? KINDS[i].name : NULL;
}
