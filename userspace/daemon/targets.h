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
#include <string>
#include <vector>
#include <vqlane/limits.h>

namespace vql {

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
    // The namespace that @c names. Refused: one that another target is.
    result<std::unique_ptr<target>> open_nvme(const target_config& c);
    // Take @t in, under an id. Refused: a name that exists.
    result<target*> add(std::unique_ptr<target> t);
    target* find(const std::string& name) const;
    // The end of @t takes two steps: nobody finds it any more; then, when pollers have let go of it
    // and no claim is left, its id is free.
    void retire(const target& t) { retired_.push_back(&t); }
    std::unique_ptr<target> remove(target& t);
    // Look again how large @t is, and make a regular file as large as @want. Returns the usable
    // size, and changes nothing of @t. May wait for storage: on any thread, while @t is there.
    result<uint64_t> grow(const target& t, uint64_t want) const;

    // Claim for a disk. Refused when a part overlaps one of another claim, unless both only read.
    result<void> add_claims(const std::vector<claim>& claims);
    void remove_claims(const std::string& disk);

    const target_table& table() const { return *table_; }
    const std::vector<std::unique_ptr<target>>& all() const { return targets_; }

    // Look again at the namespaces whose controllers may have changed them. One that is not what it
    // was opened as is withdrawn, and serves again when it is; @changed is called for each.
    //
    // Another host, or the kernel through another controller, can format a namespace: with blocks
    // of another size under it, a command would name other bytes, and the drive would go past its
    // PRP list.
    void look_at_namespaces(const std::function<void(const target&)>& changed);

    // Tell the log of what storage refused since the last call.
    void report_errors();

  private:
    controller_set* controllers_ = nullptr;
    std::vector<std::unique_ptr<target>> targets_;
    std::vector<const target*> retired_;
    std::vector<claim> claims_;
    std::unique_ptr<target_table> table_ = std::make_unique<target_table>();
    std::array<uint64_t, VQL_MAX_TARGETS> reported_{};
    std::array<uint32_t, VQL_MAX_TARGETS> looked_{}; // at which of the controller's changes
};

} // namespace vql
