// SPDX-License-Identifier: GPL-2.0-only
// For what others can have us say as often as they like: one line a second, and a count of those
// left out. The first line is written at once; of those that come within the second after it the
// last one is kept, and written with the count when the second is over.
#pragma once

#include "base/log.h"

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>

namespace vql {

class log_limiter {
  public:
    using clock = std::chrono::steady_clock;

    // Log @message, now or in tick(). One that is below the log's threshold is forgotten at once,
    // and takes no other one's place.
    void log(log_level level, std::string message, clock::time_point now = clock::now());
    // About once a second: what is due.
    void tick(clock::time_point now = clock::now());

    // What log() and tick() write: nothing, or a line. For tests.
    std::optional<std::string> admit(log_level level, std::string message, clock::time_point now);
    std::optional<std::string> due(clock::time_point now);

  private:
    log_level level_ = log_level::info; // of kept_
    std::string kept_;
    uint64_t left_out_ = 0; // since the last line, kept_ among them
    clock::time_point quiet_until_{};
};

} // namespace vql
