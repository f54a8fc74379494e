// Decoder of matrices of packed words, to float32 or bfloat16.

#include "words.h"

// Rows `order[0]` and so on of a matrix, or those from `start` on. See zoquant/kernels/words.py for the arguments.
extern "C" void zoquant_decode_words(const Matrix* matrix, const int64_t* order, int64_t start, int64_t rows, void* out,
                                     int64_t bfloat16, int32_t threads) {
#pragma omp parallel num_threads(threads)
    {
        Rows decoder(*matrix);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < rows; ++i) {
            const int64_t row = order ? order[i] : start + i, at = i * matrix->columns;
            if (bfloat16)
                decoder.decode(row, i, static_cast<uint16_t*>(out) + at);
            else
                decoder.decode(row, i, static_cast<float*>(out) + at);
        }
    }
}
