// Matrices of packed words: how a row of codes and the numbers beside them become weights, in float32 or bfloat16.
//
// The codes of a row are unpacked to bytes, the numbers beside them to float32. Then sixteen codes at a time become
// numbers, each kind of number is applied to them, and they are rounded: the arithmetic of the torch decoders, rounding
// by rounding. See zoquant/kernels/operands.py for what the structs say.

#pragma once

#include <algorithm>
#include <vector>

#include "layouts.h"

namespace {

enum Operation : int64_t { subtract, multiply, add };

struct Numbers {
    const void* data;
    const int64_t* group_of;  // group of each column; null where groups are runs of `size` columns
    int64_t dtype, row, group, groups, size, bits, plus, picked, operation;
    int64_t order[32];  // which integer of a word belongs to each of its rows

    float at(int64_t index) const {
        if (dtype < 3) return Field{data, int32_t(dtype)}.at(index);
        if (dtype == 3) return float(static_cast<const int32_t*>(data)[index]);
        if (dtype == 4) return float(static_cast<const int16_t*>(data)[index]);
        if (dtype == 5) return float(static_cast<const int8_t*>(data)[index]);
        return float(static_cast<const uint8_t*>(data)[index]);
    }

    // The numbers of a row, one a group.
    void read(int64_t of, float* values) const {
        if (!bits) {
            for (int64_t g = 0; g < groups; ++g) values[g] = at(of * row + g * group);
            return;
        }
        const int64_t per = 32 / bits, shift = order[of % per] * bits;
        const uint32_t* words = static_cast<const uint32_t*>(data) + of / per * row;
        for (int64_t g = 0; g < groups; ++g)
            values[g] = float((words[g * group] + uint32_t(plus)) >> shift & ((1u << bits) - 1));
    }
};

struct Codes {
    const uint8_t* words;
    int64_t size, row, step, rows;  // bytes of a word; words between two rows of words, and two of a row; rows of words
    int64_t bits, is_signed, offset, high_first;
    int64_t lanes, inner;  // rows that share a word and how far apart they are; 0 lanes where each has its own words
    int64_t shifts[32];    // lowest bit of each of their codes
};

struct Matrix {
    Codes codes;
    Numbers numbers[4];  // in the order in which they are applied
    int64_t count;       // of them
    const float* table;  // what codes stand for; null where they are numbers
    int64_t levels, columns;
};

// Elements of a vector, or of memory, at sixteen places.
template <class Vector, class Places>
Vector pick(Vector from, Places places) {
#ifdef __clang__
    Vector found;
    for (int i = 0; i < 16; ++i) found[i] = from[places[i]];
    return found;
#else
    return __builtin_shuffle(from, places);
#endif
}
template <class Places>
floats16 gather(const float* from, const Places& places) {
    floats16 found;
    for (int i = 0; i < 16; ++i) found[i] = from[places[i]];
    return found;
}

template <class Value>
floats16 apply(Operation operation, floats16 weights, Value value) {
    return operation == subtract ? weights - value : operation == multiply ? weights * value : weights + value;
}

// Sixteen neighbouring codes of a row at a time: a few bits of its bytes, or of a 32-bit word for each code.
struct Unpacker {
    const uint8_t *from, *end;
    int64_t bits;   // of the memory that a code takes
    bytes16 place;  // the byte of each code
    ints16 shift;   // and its lowest bit in it
    int mask;

    ints16 read(int64_t column) const {
        const uint8_t* at = from + column * bits / 8;
        return bits == 32 ? load_whole<ints16>(at) >> shift & mask
                          : widen(pick(load_whole<bytes16>(at), place)) >> shift & mask;
    }

    // A vector, with zeros where there is no memory any more.
    template <class Vector>
    Vector load_whole(const uint8_t* at) const {
        Vector found = {};
        if (end - at >= int64_t(sizeof found))
            std::memcpy(&found, at, sizeof found);
        else
            std::memcpy(&found, at, end - at);
        return found;
    }
};

// What a row consists of, in registers where the compiler finds them: nothing that is stored to can lie here.
template <bool runs>
struct Row {
    const Unpacker codes;
    const float* table;
    const int64_t levels, count;
    const int flip, less;
    floats16 sixteen;          // the table, where it has sixteen levels
    const float* values[4];    // one a group
    const int32_t* groups[4];  // of each column
    Operation operations[4];

    // The weights of sixteen columns.
    floats16 at(int64_t column) const {
        const ints16 code = codes.read(column);
        floats16 w = !table ? number((code ^ flip) - less) : levels == 16 ? pick(sixteen, code) : gather(table, code);
        for (int64_t i = 0; i < count; ++i) {
            const int32_t* group = groups[i] + column;
            if constexpr (runs)
                w = apply(operations[i], w, values[i][*group]);
            else
                w = apply(operations[i], w, gather(values[i], group));
        }
        return w;
    }
};

// Decodes rows of a matrix one after the other; each thread has one.
class Rows {
public:
    explicit Rows(const Matrix& matrix) : m(matrix) {
        for (int64_t i = 0; i < m.count; ++i) runs = runs && !m.numbers[i].group_of && m.numbers[i].size % 16 == 0;
        for (int64_t i = 0; i < m.count; ++i) {
            values[i].resize(m.numbers[i].groups);
            groups[i].resize(m.columns + slack);
            for (int64_t c = 0; c < m.columns; ++c)
                groups[i][c] = int32_t(m.numbers[i].group_of ? m.numbers[i].group_of[c] : c / m.numbers[i].size);
        }
    }

    // The weights of row `row`, which is row `place` of those that were asked for.
    template <class Number>
    void decode(int64_t row, int64_t place, Number* out) {
        read_codes(row);
        for (int64_t i = 0; i < m.count; ++i)
            m.numbers[i].read(m.numbers[i].picked ? place : row, values[i].data());
        if (runs)
            round_row<true>(out);
        else
            round_row<false>(out);
    }

private:
    static constexpr int64_t slack = 16, block = 16;  // block: rows of words that share the lines of the cache

    template <bool runs, class Number>
    void round_row(Number* out) const {
        const int64_t columns = m.columns, whole = columns / 16 * 16;
        const int flip = m.codes.is_signed ? 128 : 0;
        Row<runs> row = {codes, m.table, m.levels, m.count, flip, flip + int(m.codes.offset)};
        if (m.levels == 16) std::memcpy(&row.sixteen, m.table, sizeof row.sixteen);
        for (int64_t i = 0; i < m.count; ++i) {
            row.values[i] = values[i].data();
            row.groups[i] = groups[i].data();
            row.operations[i] = Operation(m.numbers[i].operation);
        }
        for (int64_t column = 0; column < whole; column += 16) store(out + column, row.at(column));
        if (whole == columns) return;
        Number rest[16];
        store(rest, row.at(whole));
        std::memcpy(out + whole, rest, (columns - whole) * sizeof(Number));
    }

    void read_codes(int64_t row) {
        const Codes& c = m.codes;
        codes.bits = c.lanes ? 8 * c.size : c.bits;
        codes.mask = (1 << c.bits) - 1;
        const int64_t bytes = (m.columns * codes.bits + 7) / 8, lanes = std::max<int64_t>(c.lanes, 1);
        const int64_t lane = row / c.inner % lanes, line = row / (c.inner * lanes) * c.inner + row % c.inner;
        codes.from = words_of(line, (bytes + c.size - 1) / c.size);
        codes.end = codes.from + bytes;
        for (int i = 0; i < 16; ++i) {
            const int first = int(i * codes.bits % 8);
            codes.place[i] = uint8_t(i * codes.bits / 8 % 16);
            codes.shift[i] = c.lanes ? int(c.shifts[lane]) : c.high_first ? 8 - int(c.bits) - first : first;
        }
    }

    // The words of a row of words, one after the other. Where a row of words is a column of the file, a block of them
    // is copied at a time, line by line of the cache.
    const uint8_t* words_of(int64_t row, int64_t count) {
        const Codes& c = m.codes;
        if (c.step == 1) return c.words + row * c.row * c.size;
        const int64_t pitch = count + block, first = row / block * block;
        if (first != copied) {
            copy.resize(pitch * block);
            const uint32_t* from = reinterpret_cast<const uint32_t*>(c.words) + first * c.row;
            const int64_t high = std::min(block, c.rows - first);
            for (int64_t k = 0; k < count; ++k)
                for (int64_t r = 0; r < high; ++r) copy[r * pitch + k] = from[k * c.step + r * c.row];
            copied = first;
        }
        return reinterpret_cast<const uint8_t*>(copy.data() + (row - first) * pitch);
    }

    const Matrix& m;
    bool runs = true;  // whether sixteen columns share all numbers
    Unpacker codes;
    std::vector<float> values[4];    // of this row, one a group
    std::vector<int32_t> groups[4];  // of each column
    std::vector<uint32_t> copy;
    int64_t copied = -1;
};

}  // namespace
