// SPDX-License-Identifier: GPL-2.0-only
#include "base/log_limiter.h"

#include <utility>

namespace vql {

std::optional<std::string> log_limiter::admit(log_level level, std::string message,
                                              clock::time_point now) {
    if (now >= quiet_until_ && !left_out_) {
        quiet_until_ = now + std::chrono::seconds(1);
        return message;
    }
    level_ = level;
    kept_ = std::move(message);
    left_out_++;
    return due(now); // the tick is late
}

std::optional<std::string> log_limiter::due(clock::time_point now) {
    if (now < quiet_until_ || !left_out_)
        return std::nullopt;
    std::string line = std::exchange(kept_, {});
    if (left_out_ > 1)
        line +=
            " (the last of " + std::to_string(left_out_) + " such lines; the others are left out)";
    left_out_ = 0;
    quiet_until_ = now + std::chrono::seconds(1);
    return line;
}

void log_limiter::log(log_level level, std::string message, clock::time_point now) {
    if (!would_log(level))
        return;
    if (const auto line = admit(level, std::move(message), now))
        vql::log(level, *line);
}

void log_limiter::tick(clock::time_point now) {
    if (const auto line = due(now))
        vql::log(level_, *line);
}

} // namespace vql
