// SPDX-License-Identifier: GPL-2.0-only
// Disks as the operator writes and reads them.
#pragma once

#include "base/result.h"

#include <string>

#include <nlohmann/json_fwd.hpp>

namespace vql {

// "TARGET:OFFSET:LENGTH" → {"target", "offset", "length"} with bytes. TARGET may contain colons.
result<nlohmann::json> parse_extent(const std::string& text);

// Entries of the daemon's disk_list. Throws json::exception where they are not as agreed.
std::string disk_table(const nlohmann::json& disks);

} // namespace vql
