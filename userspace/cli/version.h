// SPDX-License-Identifier: GPL-2.0-only
// The versions of all parts that run: what a report of a fault begins with.
#pragma once

#include <chrono>
#include <string>

#include <nlohmann/json_fwd.hpp>

namespace vql {

// {"vqlane", "vqlaned", "module", "kernel"}: strings, null for a part that is not there, and then
// "vqlaned_error" says why there is no daemon. @socket is its control socket, @patience how long it
// may take to answer. "json" is the version of what --json prints: it counts on when a key goes or
// changes its meaning, not when one is added.
nlohmann::json versions(const std::string& socket, std::chrono::milliseconds patience);

// A line a part.
std::string version_text(const nlohmann::json& versions);

} // namespace vql
