// Layouts of packed blocks: how the codes and continuous fields of a group become weights, in float32 or bfloat16.
//
// Each layout is one struct whose `decode` writes the weights of one group, sixteen at a time. The arithmetic is that
// of the torch decoders, rounding by rounding, so that both give the same bits; the library is built with
// -ffp-contract=off, since a fused multiply-add would round once where torch rounds twice. The vectors are those of
// GCC and Clang, which the compiler cuts to whatever the processor has.

#pragma once

#include <cstdint>
#include <cstring>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace {  // each source has a copy of its own, so that nothing here is a symbol of the library

typedef uint8_t bytes16 __attribute__((vector_size(16)));
typedef uint16_t halves16 __attribute__((vector_size(32)));
typedef int32_t ints16 __attribute__((vector_size(64)));
typedef uint32_t words16 __attribute__((vector_size(64)));
typedef float floats16 __attribute__((vector_size(64)));

template <class To, class From>
To bits_as(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

float half_to_float(uint16_t half) {
#ifdef __FLT16_MAX__
    return float(bits_as<_Float16>(half));
#else
    uint32_t sign = uint32_t(half & 0x8000) << 16, rest = half & 0x7fff;
    if (rest >= 0x7c00) return bits_as<float>(sign | 0x7f800000 | (rest & 0x3ff) << 13);
    if (rest < 0x0400) return bits_as<float>(sign | bits_as<uint32_t>(float(rest) * 0x1p-24f));  // subnormal: exact
    return bits_as<float>(sign | ((rest << 13) + 0x38000000));
#endif
}

struct Field {  // one continuous field: a number a group
    const void* data;
    int32_t dtype;  // 0 float16, 1 bfloat16, 2 float32

    float at(int64_t index) const {
        if (dtype == 0) return half_to_float(static_cast<const uint16_t*>(data)[index]);
        if (dtype == 1) return bits_as<float>(uint32_t(static_cast<const uint16_t*>(data)[index]) << 16);
        return static_cast<const float*>(data)[index];
    }
};

bytes16 load_bytes(const uint8_t* from) {
    bytes16 codes;
    std::memcpy(&codes, from, 16);
    return codes;
}

// Sixteen bytes as unsigned numbers. Shifts and signs come after the widening: processors lack them for bytes.
ints16 widen(bytes16 codes) {
#ifdef __AVX512F__  // the same in one instruction, which GCC 12 does not find
    return bits_as<ints16>(_mm512_cvtepu8_epi32(bits_as<__m128i>(codes)));
#else
    return __builtin_convertvector(codes, ints16);
#endif
}
ints16 load(const uint8_t* from) { return widen(load_bytes(from)); }
ints16 load_signed(const uint8_t* from) { return (load(from) ^ 128) - 128; }

floats16 number(ints16 codes) { return __builtin_convertvector(codes, floats16); }

void store(float* out, floats16 weights) { std::memcpy(out, &weights, sizeof weights); }

// To the nearest bfloat16, ties to even. Infinity stays; NaN becomes the quiet one.
void store(uint16_t* out, floats16 weights) {
    words16 bits = bits_as<words16>(weights);
    words16 rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    rounded = (bits & 0x7fffffff) > 0x7f800000 ? rounded * 0 + 0x7fc0 : rounded;
#ifdef __AVX512F__
    halves16 narrow = bits_as<halves16>(_mm512_cvtepi32_epi16(bits_as<__m512i>(rounded)));
#else
    halves16 narrow = __builtin_convertvector(rounded, halves16);
#endif
    std::memcpy(out, &narrow, sizeof narrow);
}

struct Q4_0 {  // d (q - 8): the low nibbles of 16 bytes come first, then the high ones
    static constexpr int block = 32, bytes = 16, fields = 1;
    template <class Number>
    static void decode(const uint8_t* c, const float* v, Number* out) {
        store(out, number((load(c) & 15) - 8) * v[0]);
        store(out + 16, number((load(c) >> 4) - 8) * v[0]);
    }
};

struct Q4_1 {  // d q + m
    static constexpr int block = 32, bytes = 16, fields = 2;
    template <class Number>
    static void decode(const uint8_t* c, const float* v, Number* out) {
        store(out, number(load(c) & 15) * v[0] + v[1]);
        store(out + 16, number(load(c) >> 4) * v[0] + v[1]);
    }
};

// ggml-common.h `kvalues_iq4nl`, with 128 added to each
const bytes16 iq4_table = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};

floats16 iq4(bytes16 index) {
#ifdef __clang__
    bytes16 found;
    for (int i = 0; i < 16; ++i) found[i] = iq4_table[index[i]];
#else
    bytes16 found = __builtin_shuffle(iq4_table, index);
#endif
    return number(widen(found) - 128);
}

struct IQ4_NL {  // d table[q]
    static constexpr int block = 32, bytes = 16, fields = 1;
    template <class Number>
    static void decode(const uint8_t* c, const float* v, Number* out) {
        store(out, iq4(load_bytes(c) & 15) * v[0]);
        store(out + 16, iq4(load_bytes(c) >> 4) * v[0]);
    }
};

// Bits `first` to `first + 15` of a word, each as bit 4 of a number.
ints16 fifth_bits(uint32_t word, int first) {
    const words16 place = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    words16 bits = ((place * 0 + word) >> (place + first)) & 1;
    return bits_as<ints16>(bits << 4);
}

// Q5_0 and Q5_1: bit i of the first four bytes is the fifth bit of weight i; nibbles as Q4_0 follow.
void five_bits(const uint8_t* c, floats16* first, floats16* last, int offset) {
    uint32_t word;
    std::memcpy(&word, c, 4);
    ints16 codes = load(c + 4);
    *first = number(((codes & 15) | fifth_bits(word, 0)) - offset);
    *last = number(((codes >> 4) | fifth_bits(word, 16)) - offset);
}

struct Q5_0 {  // d (q - 16)
    static constexpr int block = 32, bytes = 20, fields = 1;
    template <class Number>
    static void decode(const uint8_t* c, const float* v, Number* out) {
        floats16 first, last;
        five_bits(c, &first, &last, 16);
        store(out, first * v[0]);
        store(out + 16, last * v[0]);
    }
};

struct Q5_1 {  // d q + m
    static constexpr int block = 32, bytes = 20, fields = 2;
    template <class Number>
    static void decode(const uint8_t* c, const float* v, Number* out) {
        floats16 first, last;
        five_bits(c, &first, &last, 0);
        store(out, first * v[0] + v[1]);
        store(out + 16, last * v[0] + v[1]);
    }
};

struct Q8_0 {  // d q
    static constexpr int block = 32, bytes = 32, fields = 1;
    template <class Number>
    static void decode(const uint8_t* c, const float* v, Number* out) {
        store(out, number(load_signed(c)) * v[0]);
        store(out + 16, number(load_signed(c + 16)) * v[0]);
    }
};

// The eight 6-bit scales and minima of Q4_K and Q5_K, packed in 12 bytes, times the factors of the super-block.
void scales_and_minima(const uint8_t* c, const float* v, float* scale, float* minimum) {
    for (int i = 0; i < 4; ++i) {
        scale[i] = float(c[i] & 63) * v[0];
        minimum[i] = float(c[4 + i] & 63) * v[1];
        scale[4 + i] = float((c[8 + i] & 15) | (c[i] >> 6 << 4)) * v[0];
        minimum[4 + i] = float((c[8 + i] >> 4) | (c[4 + i] >> 6 << 4)) * v[1];
    }
}

// d sc q - dmin mn: 12 bytes of scales; Q5_K: 32 bytes of fifth bits, a plane a sub-block; four runs of nibbles.
template <bool fifth>
struct Q45_K {
    static constexpr int block = 256, bytes = fifth ? 172 : 140, fields = 2;
    template <class Number>
    static void decode(const uint8_t* c, const float* v, Number* out) {
        float scale[8], minimum[8];
        scales_and_minima(c, v, scale, minimum);
        const uint8_t* nibbles = c + (fifth ? 44 : 12);
        for (int piece = 0; piece < 16; ++piece) {
            const int sub = piece / 2, half = piece % 2 * 16;
            ints16 q = load(nibbles + sub / 2 * 32 + half) >> (sub % 2 * 4) & 15;
            if (fifth) q |= (load(c + 12 + half) >> sub & 1) << 4;
            store(out + 16 * piece, number(q) * scale[sub] - minimum[sub]);
        }
    }
};

struct Q6_K {  // d sc (q - 32): low nibbles in two runs of 64 bytes, upper 2 bits in two of 32, sixteen int8 sc
    static constexpr int block = 256, bytes = 208, fields = 1;
    template <class Number>
    static void decode(const uint8_t* c, const float* v, Number* out) {
        for (int piece = 0; piece < 16; ++piece) {
            const int run = piece / 8, plane = piece % 8 / 2, half = piece % 2 * 16;
            ints16 low = load(c + 64 * run + plane % 2 * 32 + half) >> (plane / 2 * 4) & 15;
            ints16 upper = load(c + 128 + 32 * run + half) >> (2 * plane) & 3;
            const float scale = float(int8_t(c[192 + piece])) * v[0];
            store(out + 16 * piece, number((low | upper << 4) - 32) * scale);
        }
    }
};

}  // namespace
