// Softmax attention of one head over a few dozen tokens, in floats that stay in the first caches.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "dot.h"

namespace worldenv::cpu {

// c[m][n] = sum over k of a(m, k) b[k][n]; rows of b and c are whole vectors.
struct Product {
  const float *a, *b;
  float* c;
  int64_t a_pitch, a_step, depth, pitch;  // of a from m, and from k, to the next; pitch: of b and of c
};

template <int Width, int M, int N>
WORLDENV_INLINE void product_tile(const Product& p, int64_t m, int64_t n) {
  typename Vector<Width>::Floats acc[M * N], b[N];
  WORLDENV_EACH(i, M * N) { acc[i] = typename Vector<Width>::Floats{}; });
  const float *a = p.a + m * p.a_pitch, *from = p.b + n;
  for (int64_t k = 0; k < p.depth; ++k, from += p.pitch) {
    WORLDENV_EACH(j, N) { __builtin_memcpy(&b[j], from + j * Width, sizeof(b[j])); });
    WORLDENV_EACH(i, M) {
      Vector<Width> one;
      one.fill(a[i * p.a_pitch + k * p.a_step]);
      WORLDENV_EACH(j, N) { acc[i * N + j] += one.v * b[j]; });
    });
  }
  WORLDENV_EACH(i, M * N) {
    __builtin_memcpy(p.c + (m + i / N) * p.pitch + n + i % N * Width, &acc[i], sizeof(acc[i]));
  });
}

template <int Width>
WORLDENV_INLINE void product(const Product& p, int64_t rows) {
  for (int64_t n = 0; n < p.pitch;) {
    const int64_t vectors = (p.pitch - n) / Width;
    int64_t m = 0;
    if (vectors >= 4 && Width == 16) {
      for (; m + 4 <= rows; m += 4) product_tile<Width, 4, 4>(p, m, n);
      for (; m < rows; ++m) product_tile<Width, 1, 4>(p, m, n);
      n += 4 * Width;
    } else if (vectors >= 2) {
      for (; m + 4 <= rows; m += 4) product_tile<Width, 4, 2>(p, m, n);
      for (; m < rows; ++m) product_tile<Width, 1, 2>(p, m, n);
      n += 2 * Width;
    } else {
      for (; m + 4 <= rows; m += 4) product_tile<Width, 4, 1>(p, m, n);
      for (; m < rows; ++m) product_tile<Width, 1, 1>(p, m, n);
      n += Width;
    }
  }
}

struct Attention {
  int64_t tokens, width, heads;

  int64_t each() const { return width / heads; }
};

inline int64_t whole(int64_t count) { return (count + kLanes - 1) / kLanes * kLanes; }

struct AttentionRoom {
  std::vector<float> queries, values, scores, out, total;

  explicit AttentionRoom(const Attention& a)
      : queries(a.each() * whole(a.tokens)), values(a.tokens * whole(a.each())), scores(a.tokens * whole(a.tokens)),
        out(a.tokens * whole(a.each())), total(whole(a.tokens)) {}
};

// All heads of one episode. A query is a lane, so that softmax needs no sum across lanes.
template <int Width>
WORLDENV_INLINE void attend(
    const float* qkv,  // [tokens, 3, heads, each]
    float* to,         // [tokens, heads, each]
    const Attention& shape,
    AttentionRoom& room
) {
  const int64_t n = shape.tokens, d = shape.each(), pitch = 3 * shape.width, columns = whole(n), across = whole(d);
  const float scale = 1.0f / std::sqrt(float(d));
  float *queries = room.queries.data(), *values = room.values.data(), *scores = room.scores.data();
  Vector<Width> value, highest, total;
  for (int64_t head = 0; head < shape.heads; ++head) {
    const float *q = qkv + head * d, *k = q + shape.width, *v = k + shape.width;
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t c = 0; c < d; ++c) queries[c * columns + i] = q[i * pitch + c] * scale;
      std::copy(v + i * pitch, v + i * pitch + d, values + i * across);
    }
    product<Width>({k, queries, scores, pitch, 1, d, columns}, n);  // [key, query]
    for (int64_t i = 0; i < columns; i += Width) {
      highest.load(scores + i);
      for (int64_t j = 1; j < n; ++j) {
        value.load(scores + j * columns + i);
        highest.v = highest.v > value.v ? highest.v : value.v;
      }
      total.fill(0.0f);
      for (int64_t j = 0; j < n; ++j) {
        value.load(scores + j * columns + i);
        value.v -= highest.v;
        value.exponential();
        total.v += value.v;
        value.store(scores + j * columns + i);
      }
      total.v = 1.0f / total.v;
      total.store(room.total.data() + i);
    }
    product<Width>({scores, values, room.out.data(), 1, columns, n, across}, n);
    for (int64_t i = 0; i < n; ++i)
      for (int64_t c = 0; c < d; ++c) to[i * shape.width + head * d + c] = room.out[i * across + c] * room.total[i];
  }
}

}  // namespace worldenv::cpu
