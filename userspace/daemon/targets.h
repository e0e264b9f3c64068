// SPDX-License-Identifier: GPL-2.0-only
// All targets of the daemon, and which disk uses which part of each.
#pragma once

#include "base/result.h"
#include "daemon/config.h"
#include "engine/target.h"

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>
#include <vqlane/limits.h>

namespace vql {

// Targets by the id that extent words hold. Written by the control thread before any extent or
// message tells a poller of the id (release), read by pollers (acquire).
using target_table = std::array<std::atomic<target*>, VQL_MAX_TARGETS>;

// A part of a target that belongs to a disk.
struct claim {
    target* where;
    uint64_t offset; // bytes
    uint64_t bytes;
    std::string disk;
    bool read_only;
};

class target_set {
  public:
    // Open what @c names. Refused: a name that exists.
    result<target*> open(const target_config& c);
    target* find(const std::string& name) const;
    // Close @t, which nobody uses any more: no claim, and pollers were told.
    void close(target& t);
    bool claimed(const target& t) const;

    // Claim for a disk. Refused when a part overlaps one of another claim, unless both only read.
    result<void> add_claims(const std::vector<claim>& claims);
    void remove_claims(const std::string& disk);

    const target_table& table() const { return *table_; }
    const std::vector<std::unique_ptr<target>>& all() const { return targets_; }

    // Tell the log of what storage refused since the last call.
    void report_errors();

  private:
    std::vector<std::unique_ptr<target>> targets_;
    std::vector<claim> claims_;
    std::unique_ptr<target_table> table_ = std::make_unique<target_table>();
    std::array<uint64_t, VQL_MAX_TARGETS> reported_{};
};

} // namespace vql
