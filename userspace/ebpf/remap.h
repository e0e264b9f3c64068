// SPDX-License-Identifier: GPL-2.0-only
// The BPF programs that tell the kernel module where requests go: the default one, and operators'
// policies (bpf/README.md). They are pinned beside the maps that they read and stay while a disk
// does, so that the module goes on without a daemon.
#pragma once

#include "base/result.h"
#include "ebpf/maps.h"

#include <cstdint>
#include <string>

struct bpf_object;

namespace vql {

class remap_programs {
  public:
    // @maps outlives this.
    explicit remap_programs(const bpf_maps& maps) : maps_(maps) {}
    ~remap_programs();

    // Load the default program into a kernel that has the module: in the place of the one that an
    // earlier daemon left, without a moment between them. Not without BPF maps.
    result<void> load_default();
    // The module can remap: it may be given queues.
    bool active() const { return active_; }

    // Have the object in @file decide for the disk at @slot, which is in the module, instead of
    // what it has. A refusal has the words of libbpf and the verifier, and changes nothing.
    result<void> set_policy(uint32_t slot, const std::string& disk, const std::string& file) const;
    result<void> remove_policy(uint32_t slot, const std::string& disk) const;
    // The name of its policy; empty: it has none.
    std::string policy(uint32_t slot) const;

  private:
    result<void> load(bpf_object& o, const std::string& disk, const std::string& pin) const;
    std::string default_pin() const { return maps_.dir() + "/remap"; }
    std::string policy_pin(uint32_t slot) const { return maps_.disk_dir(slot) + "/policy"; }

    const bpf_maps& maps_;
    bool active_ = false;
};

} // namespace vql
