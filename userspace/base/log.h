// SPDX-License-Identifier: GPL-2.0-only
// Log lines on stderr, "<level>: message"; under systemd with the journal's "<N>" prefix.
// For the control path; the I/O path does not log. What a client can have us say any number of
// times goes through a log_limiter.
#pragma once

#include <string>
#include <string_view>

namespace vql {

enum class log_level { error, warning, info, debug };

void set_log_level(log_level level);
bool would_log(log_level level);
// Any thread; one write(2) a line, so that lines of two threads do not mix.
void log(log_level level, std::string_view message);

inline void log_error(std::string_view message) {
    log(log_level::error, message);
}
inline void log_warning(std::string_view message) {
    log(log_level::warning, message);
}
inline void log_info(std::string_view message) {
    log(log_level::info, message);
}
inline void log_debug(std::string_view message) {
    log(log_level::debug, message);
}

} // namespace vql
