// SPDX-License-Identifier: GPL-2.0-only
// Disks as the operator writes and reads them.
#pragma once

#include "base/result.h"

#include <string>

#include <nlohmann/json_fwd.hpp>

namespace vql {

// "TARGET:OFFSET:LENGTH" → {"target", "offset", "length"} with bytes. TARGET may contain colons.
result<nlohmann::json> parse_extent(const std::string& text);

struct disk_list_options {
    std::string name;          // only this one, in full; empty: all, a row each
    std::string sort = "name"; // or "size", the largest first, or "client", those with one first
    bool wide = false;         // all columns, none cut
    size_t width = 80;         // characters a line that the rest is cut to; 0: nothing is cut
};

// The functions below take entries of the daemon's disk_list, and throw json::exception where they
// are not as agreed.

// Leave those in @disks that were asked for, in that order. An error when there is no such disk.
result<void> choose_disks(nlohmann::json& disks, const disk_list_options& o);
// A row a disk, or all of the one that was asked for.
std::string disk_list_text(const nlohmann::json& disks, const disk_list_options& o);
// @width: as in the options.
std::string disk_table(const nlohmann::json& disks, bool wide, size_t width = 80);
// One disk, a line for each thing that there is to say.
std::string disk_details(const nlohmann::json& disk);

} // namespace vql
