// SPDX-License-Identifier: GPL-2.0-only
#include <base/log_limiter.h>
#include <catch2/catch_test_macros.hpp>

using namespace std::chrono_literals;
using vql::log_level;
using vql::log_limiter;

TEST_CASE("log: a line a second, with a count of those left out", "[log]") {
    log_limiter limiter;
    const log_limiter::clock::time_point start{1000s};
    const auto admit = [&](const char* text, std::chrono::milliseconds at) {
        return limiter.admit(log_level::warning, text, start + at).value_or("");
    };
    const auto due = [&](std::chrono::milliseconds at) {
        return limiter.due(start + at).value_or("");
    };
    CHECK(admit("a", 0ms) == "a");
    CHECK(due(500ms).empty()); // nothing was left out
    CHECK(admit("b", 600ms).empty());
    CHECK(due(999ms).empty());
    CHECK(due(1000ms) == "b"); // a single one is late, not lost
    CHECK(due(5000ms).empty());

    uint64_t lines = 0;
    for (int ms = 6000; ms < 9000; ms++)
        lines += admit("flood", std::chrono::milliseconds(ms)).empty() ? 0 : 1;
    CHECK(lines == 3); // even if nobody calls tick()
    CHECK(due(9500ms) == "flood (the last of 999 such lines; the others are left out)");
    CHECK(due(20s).empty());
    CHECK(admit("c", 20s) == "c");
}
