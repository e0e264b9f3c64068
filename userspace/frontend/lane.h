// SPDX-License-Identifier: GPL-2.0-only
// In which lane a queue of a vDPA disk is served: the poll lane (a poller of ours) or the kernel
// lane (the module, when it is lent the queue).
#pragma once

#include "base/kmod.h"
#include "base/result.h"

#include <cstdint>
#include <functional>

namespace vql {

enum class lane_mode {
    poll,     // always ours
    kernel,   // the module's, but for what it cannot serve, one request at a time
    automatic // the module's while there is little to do, ours while there is much
};

struct lane_settings {
    lane_mode mode = lane_mode::poll;
    // Of one queue: from here on down it is the module's. (From where on it is ours the plan says.)
    std::function<uint32_t()> demote_iops;
    // What the disk may reach; an error where the kernel lane cannot serve it.
    std::function<result<kmod_lane>()> plan;
    // Has the disk a policy that we cannot evaluate? Then it is as with lane_mode::kernel.
    std::function<bool()> has_policy;
};

// One queue's side of lane_mode::automatic.
class lane_choice {
  public:
    bool kernel() const { return kernel_; }
    void promote() {
        kernel_ = false;
        quiet_ = 0;
    }
    // Once a second while it is ours: @requests were answered since. Two quiet seconds in a row,
    // and the module may have it (again).
    void tick(uint64_t requests, uint32_t demote_iops) {
        quiet_ = requests <= demote_iops ? quiet_ + 1 : 0;
        kernel_ = quiet_ >= 2;
    }

  private:
    bool kernel_ = true; // a queue begins quiet
    uint32_t quiet_ = 0;
};

} // namespace vql
