// SPDX-License-Identifier: GPL-2.0-only
#include "base/log.h"

#include <array>
#include <atomic>
#include <cstdlib>
#include <unistd.h>

namespace vql {

namespace {
std::atomic<log_level> threshold{log_level::info};

struct level_name {
    const char* text;
    const char* journal; // sd-daemon(3)
};
constexpr std::array<level_name, 4> names = {
    {{"error", "<3>"}, {"warning", "<4>"}, {"info", "<6>"}, {"debug", "<7>"}}};
} // namespace

void set_log_level(log_level level) {
    threshold.store(level, std::memory_order_relaxed);
}

bool would_log(log_level level) {
    return level <= threshold.load(std::memory_order_relaxed);
}

void log(log_level level, std::string_view message) {
    static const bool journal = std::getenv("JOURNAL_STREAM") != nullptr;

    if (!would_log(level))
        return;
    const level_name& name = names[static_cast<size_t>(level)];
    std::string line;
    if (journal)
        line += name.journal;
    line += name.text;
    line += ": ";
    for (char c : message) // a client's bytes may be in here: one message stays one line
        line += static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? '?' : c;
    line += '\n';
    // Nothing sensible is left to do when stderr is gone.
    [[maybe_unused]] ssize_t n = ::write(STDERR_FILENO, line.data(), line.size());
}

} // namespace vql
