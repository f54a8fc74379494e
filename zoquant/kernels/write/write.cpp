// Theta from base and delta on a CPU: noise, perturbation, cast and the write into every view, in one walk.
//
// A row is a block of 128 elements of a view. Rows whose blocks of delta are neighbours make a run, for which the noise
// is drawn once, also where several views share a delta. The arithmetic is that of zoquant/buffer.py `compose`, each
// operation rounded on its own.

#include "../products/layouts.h"
#include "../noise/philox.h"

#ifdef __FLT16_MAX__

namespace {

struct Row {
    int64_t base, target;  // addresses of the values
    int64_t block;         // of delta
    int64_t what;          // elements that exist; from bit 8 on the dtype: 0 float16, 1 bfloat16, 2 float32; bit 16: sign

    int64_t count() const { return what & 0xff; }
    int64_t dtype() const { return what >> 8 & 0xff; }
    bool keep_sign() const { return what >> 16 & 1; }  // whether the values stop at zero
};

struct Arithmetic {
    bool relative;
    float limit[3];  // largest finite number of each dtype
};

floats16 load_half(const void* from) {
#ifdef __AVX512F__
    return bits_as<floats16>(_mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(from))));
#else
    _Float16 half[16];
    floats16 wide;
    std::memcpy(half, from, sizeof half);
    for (int i = 0; i < 16; ++i) wide[i] = float(half[i]);
    return wide;
#endif
}

void store_half(void* to, floats16 numbers) {
#ifdef __AVX512F__
    const int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    _mm256_storeu_si256(static_cast<__m256i*>(to), _mm512_cvtps_ph(bits_as<__m512>(numbers), nearest));
#else
    _Float16 half[16];
    for (int i = 0; i < 16; ++i) half[i] = _Float16(numbers[i]);
    std::memcpy(to, half, sizeof half);
#endif
}

floats16 load_numbers(const char* from, int64_t dtype) {
    if (dtype == 0) return load_half(from);
    if (dtype == 2) {
        floats16 numbers;
        std::memcpy(&numbers, from, sizeof numbers);
        return numbers;
    }
    halves16 narrow;
    std::memcpy(&narrow, from, sizeof narrow);
    return bits_as<floats16>(__builtin_convertvector(narrow, words16) << 16);
}

void store_numbers(char* to, floats16 numbers, int64_t dtype) {
    if (dtype == 0) store_half(to, numbers);
    if (dtype == 1) store(reinterpret_cast<uint16_t*>(to), numbers);
    if (dtype == 2) store(reinterpret_cast<float*>(to), numbers);
}

// Sign bits of one number, all other bits of another.
floats16 signed_as(floats16 number, floats16 sign) {
    const words16 top = words16{} + 0x80000000u;
    return bits_as<floats16>((bits_as<words16>(number) & ~top) | (bits_as<words16>(sign) & top));
}

// Theta; comparisons keep NaN as it is.
floats16 compose(floats16 delta, floats16 base, const Arithmetic& how, float limit, bool keep_sign) {
    floats16 theta;
    if (how.relative) {
        if (keep_sign) delta = delta < -1.0f ? floats16{} - 1.0f : delta;
        theta = delta * base + base;
    } else {
        theta = -(-delta - base);
        if (keep_sign) {
            floats16 along = base > 0.0f ? theta : (base < 0.0f ? -theta : floats16{});
            theta = signed_as(along < 0.0f ? floats16{} : along, base);
        }
    }
    theta = theta > limit ? floats16{} + limit : theta;
    return theta < -limit ? floats16{} - limit : theta;
}

void write_row(const Row& row, const floats16* delta, const Arithmetic& how) {
    const int64_t dtype = row.dtype(), size = dtype == 2 ? 4 : 2;
    char theta[block * sizeof(float)];
    for (int i = 0; i < block / 16; ++i) {
        const floats16 base = load_numbers(reinterpret_cast<const char*>(row.base) + 16 * i * size, dtype);
        const floats16 found = compose(delta[i], base, how, how.limit[dtype], row.keep_sign());
        store_numbers(theta + 16 * i * size, found, dtype);
    }
    std::memcpy(reinterpret_cast<char*>(row.target), theta, row.count() * size);
}

}  // namespace

extern "C" int32_t zoquant_write_ready() { return 1; }

// Writes base and delta, or delta + eps z with `probe`, to the rows of all runs; `runs` has where each begins, and the end.
extern "C" void zoquant_write(const int64_t* table, const int64_t* runs, int64_t count, const float* delta, int32_t relative,
                              const float* limits, int32_t probe, int32_t kind, const float* quantiles,
                              const int64_t* counters, int64_t all, uint64_t seed, float eps, int32_t threads) {
    const Row* rows = reinterpret_cast<const Row*>(table);
    const Layout layout{Kind(kind), quantiles, counters, all};
    const Arithmetic how = {relative != 0, {limits[0], limits[1], limits[2]}};
#pragma omp parallel for num_threads(threads) schedule(dynamic, 4)
    for (int64_t run = 0; run < count; ++run) {
        const int64_t first = rows[runs[run]].block, blocks = rows[runs[run + 1] - 1].block - first + 1;
        floats16 moved[tile / 16];
        std::memcpy(moved, delta + first * block, sizeof(float) * block * blocks);
        if (probe)
            draw(layout, first, int(blocks), seed,
                 [&](int element, floats16 z) { moved[element / 16] = moved[element / 16] + z * eps; });
        for (int64_t row = runs[run]; row < runs[run + 1]; ++row)
            write_row(rows[row], moved + (rows[row].block - first) * (block / 16), how);
    }
}

#else  // no numbers of 16 bits: torch writes

extern "C" int32_t zoquant_write_ready() { return 0; }
extern "C" void zoquant_write(const int64_t*, const int64_t*, int64_t, const float*, int32_t, const float*, int32_t, int32_t,
                              const float*, const int64_t*, int64_t, uint64_t, float, int32_t) {}

#endif
