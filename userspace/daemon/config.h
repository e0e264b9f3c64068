// SPDX-License-Identifier: GPL-2.0-only
// The configuration file (TOML), read and validated as a whole: a wrong one starts nothing.
#pragma once

#include "base/log.h"
#include "base/result.h"
#include "base/size.h"
#include "ebpf/mode.h"
#include "frontend/lane.h"

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

namespace vql {

enum class target_type { uring, null, nvme };
// Over what a guest reaches its disk: a socket of the daemon, or a vDPA device of the module.
enum class frontend_type { vhost_user, vdpa };
// Pin guests' memory for the pollers' rings: automatic = memory of huge pages only.
enum class memory_registration { automatic, always, never };

struct target_config {
    std::string name;
    target_type type = target_type::uring;
    std::string path;   // uring: a regular file or a block device
    uint64_t bytes = 0; // null: its size
    std::string device; // nvme: PCI address of a controller bound to the module, "0000:01:00.0"
    uint32_t nsid = 1;  // nvme: namespace
};

struct extent_config {
    std::string target;
    uint64_t offset = 0; // bytes on the target, a multiple of the chunk size
    uint64_t length = 0; // bytes; 0: to the end of the target
};

struct disk_config {
    std::string name; // [A-Za-z0-9_.-]{1,31}, not "." or "..", nor "tables" (see BPF_DIR)
    // At least one; "target = T" is one extent of offset 0, length 0.
    std::vector<extent_config> extents;
    uint64_t bytes = 0;       // 0: the sum of the extents
    uint64_t chunk_bytes = 0; // 0: the largest that fits
    bool read_only = false;
    bool discard = true;        // false: no space is given back, by discard or by write zeroes
    uint32_t queues = 1;        // 1…VQL_MAX_QUEUES
    uint32_t queue_size = 1024; // the largest ring a guest may use; power of two
    frontend_type frontend = frontend_type::vhost_user;
    lane_mode lane = lane_mode::automatic; // vdpa
    std::string socket;                    // vhost-user; empty: RUN_DIR/NAME.sock
    uint32_t socket_mode = 0600;
};

struct config {
    std::string run_dir = "/run/vqlane";
    std::string bpf_dir = "/sys/fs/bpf/vqlane";
    bpf_mode bpf = bpf_mode::automatic;
    std::vector<int> pollers; // CPU numbers; empty: one poller on the last allowed CPU
    uint32_t spin_us = 50;
    bool spin_always = false;
    memory_registration register_memory = memory_registration::automatic;
    // NVMe targets also behind an absent or passthrough IOMMU: then this daemon, if it is ever
    // taken over, can make the drive write to any memory of the host.
    bool allow_untranslated_dma = false;
    // Of disks with lane = "auto": from so many requests a second on a queue is a poller's, from so
    // few on down (two seconds long) the kernel's.
    uint32_t promote_iops = 10000;
    uint32_t demote_iops = 2000;
    log_level level = log_level::info;
    std::vector<target_config> targets; // also those that disks name by what they are
    std::vector<disk_config> disks;
};

// Everything that can be told from the text alone is checked here: syntax, unknown keys, types,
// ranges, names (unique, known). What needs the files themselves is checked when they are opened.
// The error reads "FILE:LINE: disk[0].queue_size: what is wrong and what was expected".
result<config> load_config(const std::string& path);

// Keys of [daemon] as JSON, over what @c has: the command line's flags, by the same rules. After an
// error ("pollers[1]: what is wrong") @c is not to be used.
result<void> override_daemon(const nlohmann::json& keys, config& c);

// One disk from the control socket: the keys of a [[disk]] table as JSON, plus "op" (skipped), and
// instead of a target "file", the path of a file or block device (its name is then "file:PATH").
// The targets that are named by what they are, this one and "nvme:BDF/NSID", are returned in
// @own_targets. Other keys are refused. Whether its name is free and its targets are known is for
// the caller to check.
result<disk_config> parse_disk(const nlohmann::json& request,
                               std::vector<target_config>& own_targets);

// "nvme:0000:01:00.0/1" as a target, or nothing when @name is not of that form. That is its name
// too, and one that no [[target]] can have.
std::optional<target_config> nvme_target_named(const std::string& name);
// Was a target of this name made for a disk, with no [[target]]?
bool made_for_disk(const std::string& target_name);

// Where @disk listens: its own socket or RUN_DIR/NAME.sock. An error when that is too long for a
// socket address, or the control socket's.
result<std::string> disk_socket(const std::string& run_dir, const disk_config& disk);

} // namespace vql
