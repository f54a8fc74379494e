// Rows and columns on a CPU: what a probe multiplies them with, and the deltas that they make.
//
// The arithmetic is that of zoquant/probing.py `ratios` and zoquant/factors.py `compose`, each operation rounded on its
// own.

#include "../noise/philox.h"

namespace {

floats16 at_least(floats16 numbers, float least) { return numbers < least ? floats16{} + least : numbers; }

struct Place {              // of the deltas of a layer; all numbers count elements
    int64_t rows, columns;  // where u and v begin
    int64_t height, width;  // how many of each there are
    int64_t first;          // where the deltas begin
    int64_t transposed;     // whether those of a column are neighbours
};

float composed(float u, float v, float least) {
    u = u < least ? least : u;
    v = v < least ? least : v;
    const float product = u * v;
    return product + u + v;
}

}  // namespace

// out[row] = (1 + u + eps z) / (1 + u) for every evaluation: seed, eps, and row of out. Evaluations of a direction are
// neighbours: it is drawn once.
extern "C" void zoquant_ratios(int32_t kind, const float* quantiles, const int64_t* counters, int64_t all,
                               const uint64_t* seeds, const float* lengths, const int64_t* rows, int64_t count,
                               const float* delta, float least, float* out, int32_t threads) {
    const Layout layout{Kind(kind), quantiles, counters, all};
    walk(all, threads, [=](int64_t first, int blocks) {
        floats16 u[tile / 16] = {}, inverse[tile / 16], z[tile / 16], found[tile / 16];
        const size_t bytes = sizeof(float) * block * blocks;
        std::memcpy(u, delta + first * block, bytes);
        for (int i = 0; i < tile / 16; ++i) inverse[i] = 1.0f / (1.0f + at_least(u[i], least));
        for (int64_t each = 0; each < count; ++each) {
            if (each == 0 || seeds[each] != seeds[each - 1])
                draw(layout, first, blocks, seeds[each], [&](int element, floats16 drawn) { z[element / 16] = drawn; });
            for (int i = 0; i < tile / 16; ++i)
                found[i] = (at_least(z[i] * lengths[each] + u[i], least) + 1.0f) * inverse[i];
            std::memcpy(out + (rows[each] * all + first) * block, found, bytes);
        }
    });
}

// The deltas of all places, from u and v.
extern "C" void zoquant_compose(const int64_t* table, int64_t count, const float* vectors, float least, float* delta,
                                int32_t threads) {
    const Place* places = reinterpret_cast<const Place*>(table);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (int64_t number = 0; number < count; ++number) {
        const Place& at = places[number];
        const float *u = vectors + at.rows, *v = vectors + at.columns;
        float* out = delta + at.first;
        if (at.transposed)
            for (int64_t column = 0; column < at.width; ++column, out += at.height)
                for (int64_t row = 0; row < at.height; ++row) out[row] = composed(u[row], v[column], least);
        else
            for (int64_t row = 0; row < at.height; ++row, out += at.width)
                for (int64_t column = 0; column < at.width; ++column) out[column] = composed(u[row], v[column], least);
    }
}
