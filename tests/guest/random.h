// SPDX-License-Identifier: GPL-2.0-only
// Random choices that a seed repeats.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <utility>

namespace vql::guest {

// xorshift64*: good enough for tests, and fast enough to fill every buffer.
class random_source {
  public:
    explicit random_source(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15 + 0x1234567) {
        state_ += state_ == 0 ? 1 : 0;
        next();
    }

    uint64_t next() {
        state_ ^= state_ >> 12;
        state_ ^= state_ << 25;
        state_ ^= state_ >> 27;
        return state_ * 0x2545f4914f6cdd1d;
    }
    // 0 … n - 1.
    uint64_t below(uint64_t n) { return (next() >> 16) % n; }
    uint64_t between(uint64_t first, uint64_t last) { return first + below(last - first + 1); }
    bool chance(unsigned percent) { return below(100) < percent; }

    template <class T>
    void shuffle(std::span<T> items) {
        for (size_t i = items.size(); i > 1; i--) {
            std::swap(items[i - 1], items[below(i)]);
        }
    }

    void fill(std::span<std::byte> bytes) {
        size_t done = 0;
        for (; done + 8 <= bytes.size(); done += 8) {
            uint64_t word = next();
            std::memcpy(bytes.data() + done, &word, 8);
        }
        if (done != bytes.size()) {
            uint64_t word = next();
            std::memcpy(bytes.data() + done, &word, bytes.size() - done);
        }
    }

  private:
    uint64_t state_;
};

} // namespace vql::guest
