// SPDX-License-Identifier: GPL-2.0-only
// Statistics as tables. Counters and latencies are those since the disk came; rates are what
// happened between two samples.
#pragma once

#include <string>

#include <nlohmann/json_fwd.hpp>

namespace vql {

// @now: the daemon's stats. @before: those of @seconds ago, null: no rates are known yet, shown as
// "-". Both throw json::exception where the statistics are not as agreed.

// Totals without @rates; IOPS and MB/s (10^6 bytes) with them.
std::string op_table(const nlohmann::json& now, bool rates, const nlohmann::json& before,
                     double seconds);
std::string poller_table(const nlohmann::json& now, bool rates, const nlohmann::json& before,
                         double seconds);

} // namespace vql
