// Decoders of packed blocks: rows of codes and continuous fields to weights, in float32 or bfloat16.

#include "layouts.h"

namespace {

struct Task {
    const uint8_t* codes;  // [rows of the file, groups, bytes]
    Field fields[2];       // [rows of the file, groups] each
    const int64_t* order;  // rows of the file that are wanted; null for the first `rows`
    int64_t rows, groups;
    void* out;  // [rows, groups, block]
};

template <class Layout, class Number>
void decode_row(const Task& task, int64_t row) {
    const int64_t first = (task.order ? task.order[row] : row) * task.groups;
    Number* out = static_cast<Number*>(task.out) + row * task.groups * Layout::block;
    for (int64_t group = first; group < first + task.groups; ++group, out += Layout::block) {
        float values[2];
        for (int field = 0; field < Layout::fields; ++field) values[field] = task.fields[field].at(group);
        Layout::decode(task.codes + group * Layout::bytes, values, out);
    }
}

template <class Layout>
void decode(const Task& task, bool bfloat16, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < task.rows; ++row) {
        if (bfloat16)
            decode_row<Layout, uint16_t>(task, row);
        else
            decode_row<Layout, float>(task, row);
    }
}

using Decoder = void (*)(const Task&, bool, int);
const Decoder decoders[] = {decode<Q4_0>, decode<Q4_1>,         decode<Q5_0>,        decode<Q5_1>, decode<Q8_0>,
                            decode<Q45_K<false>>, decode<Q45_K<true>>, decode<Q6_K>, decode<IQ4_NL>};

}  // namespace

// `layout` counts as `decoders` does. See zoquant/kernels/decode.py for the arguments.
extern "C" void zoquant_decode(int32_t layout, const uint8_t* codes, const void* first, int32_t first_dtype,
                               const void* second, int32_t second_dtype, const int64_t* order, int64_t rows,
                               int64_t groups, void* out, int32_t bfloat16, int32_t threads) {
    decoders[layout]({codes, {{first, first_dtype}, {second, second_dtype}}, order, rows, groups, out}, bfloat16 != 0,
                     threads);
}
