// The gradient by the fields of packed blocks: that by the weights of a group, times what each field is multiplied with.
//
// Weights are linear in the fields of their group, so a group that is decoded from a one in a field and zeros in the
// others says what those factors are. They stay in the first-level cache.

#include "layouts.h"

namespace {

struct Contraction {
    const uint8_t* codes;   // [rows of the file, groups, bytes]
    const int64_t* order;   // rows of the file that are wanted; null for the first `rows`
    int64_t rows, groups;
    const float* gradient;  // [rows, groups, block]
    float* sums;            // [fields, rows, groups], overwritten
};

template <class Layout>
float contract_group(const uint8_t* codes, int field, const float* gradient) {
    alignas(64) float factors[Layout::block];
    const float unit[2] = {field == 0 ? 1.0f : 0.0f, field == 1 ? 1.0f : 0.0f};
    Layout::decode(codes, unit, factors);
    floats16 sum{};
    for (int i = 0; i < Layout::block; i += 16) {
        floats16 left, right;
        std::memcpy(&left, factors + i, sizeof left);
        std::memcpy(&right, gradient + i, sizeof right);
        sum += left * right;
    }
    float total = 0;
    for (int i = 0; i < 16; ++i) total += sum[i];
    return total;
}

template <class Layout>
void contract(const Contraction& task, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < task.rows; ++row) {
        const uint8_t* codes = task.codes + (task.order ? task.order[row] : row) * task.groups * Layout::bytes;
        for (int64_t group = 0; group < task.groups; ++group) {
            const int64_t at = row * task.groups + group;
            for (int field = 0; field < Layout::fields; ++field)
                task.sums[field * task.rows * task.groups + at] = contract_group<Layout>(
                    codes + group * Layout::bytes, field, task.gradient + at * Layout::block);
        }
    }
}

using Contractor = void (*)(const Contraction&, int);
const Contractor contractors[] = {contract<Q4_0>,         contract<Q4_1>,        contract<Q5_0>,
                                  contract<Q5_1>,         contract<Q8_0>,        contract<Q45_K<false>>,
                                  contract<Q45_K<true>>,  contract<Q6_K>,        contract<IQ4_NL>};

}  // namespace

// `layout` counts as `contractors` does. See zoquant/kernels/products/contract.py for the arguments.
extern "C" void zoquant_contract(int32_t layout, const uint8_t* codes, const int64_t* order, int64_t rows,
                                 int64_t groups, const float* gradient, float* sums, int32_t threads) {
    contractors[layout]({codes, order, rows, groups, gradient, sums}, threads);
}
