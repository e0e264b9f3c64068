// SPDX-License-Identifier: GPL-2.0-only
// All targets of the daemon, and which disk uses which part of each.
#pragma once

#include "base/result.h"
#include "daemon/config.h"
#include "daemon/target_table.h"
#include "engine/target.h"

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>
#include <vqlane/limits.h>

namespace vql {

class controller;
class controller_set;

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
    // @controllers outlives the set; null: there are no NVMe targets.
    void set_controllers(controller_set* controllers) { controllers_ = controllers; }
    // The namespace that @c names of the controller @on, which is what @ns says, as of @changes.
    // Refused: one that another target is.
    result<std::unique_ptr<target>> make_nvme(const target_config& c, const controller& on,
                                              const result<vql_ns_info>& ns,
                                              uint32_t changes) const;
    // Take @t in, under an id. Refused: a name that exists.
    result<target*> add(std::unique_ptr<target> t);
    target* find(const std::string& name) const;
    // The end of @t takes two steps: nobody finds it any more; then, when pollers have let go of it
    // and no claim is left, its id is free.
    void retire(const target& t) { retired_.push_back(&t); }
    std::unique_ptr<target> remove(target& t);
    // Claim for a disk. Refused when a part overlaps one of another claim, unless both only read.
    result<void> add_claims(const std::vector<claim>& claims);
    void remove_claims(const std::string& disk);

    const target_table& table() const { return *table_; }
    const std::vector<std::unique_ptr<target>>& all() const { return targets_; }

    // Its controller's changes(), if it has had some since @t was looked at.
    std::optional<uint32_t> changes(const target& t) const;
    // Namespace @t is what @ns says, as of @changes. One that is not what it was opened as is
    // offline, and serves again when it is. Returns whether it is one or the other since now.
    //
    // Another host, or the kernel through another controller, can format a namespace: with blocks
    // of another size under it, a command would name other bytes, and the drive would go past its
    // PRP list.
    bool looked(target& t, const vql_ns_info& ns, uint32_t changes);

    // Tell the log of what storage refused since the last call.
    void report_errors();

  private:
    controller_set* controllers_ = nullptr;
    std::vector<std::unique_ptr<target>> targets_;
    std::vector<const target*> retired_;
    std::vector<claim> claims_;
    std::unique_ptr<target_table> table_ = std::make_unique<target_table>();
    std::array<uint64_t, VQL_MAX_TARGETS> reported_{};
};

} // namespace vql
