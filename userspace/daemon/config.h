// SPDX-License-Identifier: GPL-2.0-only
// What a configuration says: of the daemon, of targets, of disks; and the rules for each key and
// table. Files of them are config_files.h's, this machine is validate.h's.
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
    std::string path;       // uring: a regular file or a block device
    bool raw = false;       // uring: format = "raw", whatever its bytes look like
    bool read_only = false; // uring: all disks on it are; see decide_access()
    uint64_t bytes = 0;     // null: its size
    // A regular file, or null, is made so large when it is opened: a resize that was promised.
    uint64_t at_least = 0;
    std::string device; // nvme: PCI address of a controller bound to the module, "0000:01:00.0"
    uint32_t nsid = 1;  // nvme: namespace

    bool operator==(const target_config&) const = default;
};

struct extent_config {
    std::string target;
    uint64_t offset = 0; // bytes on the target, a multiple of the chunk size
    uint64_t length = 0; // bytes; 0: to the end of the target

    bool operator==(const extent_config&) const = default;
};

struct disk_config {
    std::string name; // [A-Za-z0-9_.-]{1,63}, not "." or "..", nor "tables" (see BPF_DIR)
    // At least one; "target = T" is one extent of offset 0, length 0, and so is "file = F".
    std::vector<extent_config> extents;
    uint64_t bytes = 0;       // 0: the sum of the extents
    uint64_t chunk_bytes = 0; // 0: the largest that fits
    bool read_only = false;
    std::string serial;         // 1 to VQL_ID_BYTES characters; empty: see disk_serial()
    bool raw = false;           // format = "raw", of the file that it names
    bool discard = true;        // false: no space is given back, by discard or by write zeroes
    uint32_t queues = 1;        // 1…VQL_MAX_QUEUES
    uint32_t queue_size = 1024; // the largest ring a guest may use; power of two
    frontend_type frontend = frontend_type::vhost_user;
    lane_mode lane = lane_mode::automatic; // vdpa
    std::string socket;                    // vhost-user; empty: RUN_DIR/NAME.sock
    std::optional<uint32_t> socket_mode;   // left out: 0600, or 0660 with a socket_group
    std::string socket_user, socket_group; // names or numbers; empty: as the file system has it

    bool operator==(const disk_config&) const = default;
    // Is it all of one target, which then may grow with it?
    bool has_whole_target() const {
        return extents.size() == 1 && !extents[0].offset && !extents[0].length;
    }
    uint32_t mode_of_socket() const {
        return socket_mode.value_or(socket_group.empty() ? 0600 : 0660);
    }
};

struct config {
    std::string run_dir = "/run/vqlane";
    std::string state_dir = "/var/lib/vqlane"; // what commands made
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

struct spot; // daemon/document.h

// One file's tables, added to @c: syntax, unknown keys, types, ranges. What is wrong goes to where
// @at sends it; false if anything is.
bool read_document(const spot& at, config& c);

// What is wrong with the rates at which queues change lanes; empty: nothing.
std::string wrong_rates(const config& c);

// Keys of [daemon] as JSON, over what @c has: the command line's flags, by the same rules. After an
// error ("pollers[1]: what is wrong") @c is not to be used.
result<void> override_daemon(const nlohmann::json& keys, config& c);

// One disk from the control socket: the keys of a [[disk]] table as JSON, plus "op" (skipped).
// The targets that are named by what they are ("file" makes one, and see target_named()) are
// returned in @own_targets. Other keys are refused; the error has all that is wrong. Whether its
// name is free and its targets are known is for the caller to check.
result<disk_config> parse_disk(const nlohmann::json& request,
                               std::vector<target_config>& own_targets);

// "nvme:0000:01:00.0/1" and "file:/absolute/path" as targets, or nothing when @name is of neither
// form. That is its name too, and one that no [[target]] can have.
std::optional<target_config> target_named(const std::string& name);
// Was a target of this name made for a disk, with no [[target]]?
bool made_for_disk(const std::string& target_name);
// The targets of @d that are named by what they are, added to @all where they are not in there.
void add_named_targets(const disk_config& d, std::vector<target_config>& all);

// Where a daemon with these settings keeps what it has served (see raw_record): its own, for it has
// its run directory locked.
std::string served_file(const config& c);

// A target is opened for reading only if every disk on it is read-only, and there is one.
void decide_access(config& c);

// By what its guest knows @disk (virtio 1.3 §5.2.6, GET_ID): its own serial or, by default, its
// name; of one that is too long, the beginning and a hash of all of it.
std::string disk_serial(const disk_config& disk);

// Where @disk listens: its own socket or RUN_DIR/NAME.sock. An error when that is too long for a
// socket address, or the control socket's.
result<std::string> disk_socket(const std::string& run_dir, const disk_config& disk);

} // namespace vql
