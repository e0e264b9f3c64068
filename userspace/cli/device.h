// SPDX-License-Identifier: GPL-2.0-only
// The machine's NVMe functions as sysfs shows them: whose they are, what is on them, and what
// stands in the way of taking one from the kernel. Needs no daemon; root sees all, others less.
#pragma once

#include "base/result.h"

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

namespace vql {

// Where the kernel shows itself. Tests have trees of their own.
struct host_tree {
    std::string sys = "/sys";
    std::string proc = "/proc";
    std::string dev = "/dev";
    std::chrono::milliseconds patience{10000}; // for what a driver does after it was bound
    std::string etc = "/etc";
    std::string run = "/run";

    std::string function(const std::string& bdf) const { return sys + "/bus/pci/devices/" + bdf; }
    std::string driver(const std::string& name) const { return sys + "/bus/pci/drivers/" + name; }
    // What the IOMMU group's type was before the function was bound to the module; gone after a
    // reboot, like that.
    std::string group_note(const std::string& bdf) const {
        return run + "/vqlane-device/" + bdf + ".iommu";
    }
    // The module's device for a controller that is bound to it.
    std::string vqlane_node(const std::string& bdf) const { return dev + "/vqlane/nvme-" + bdf; }
};

// How much something says against taking the drive.
enum class objection {
    note,     // worth telling
    unforced, // needs --force: data of somebody's, that stays where it is
    absolute, // would lose data or end a program that is running
};

struct device_use {
    std::string text; // "/dev/nvme0n1p2 is mounted on /home"
    objection weight;
};

// A namespace to which the kernel's nvme driver has given a block device.
struct nvme_namespace {
    // Of the block device: "nvme0n1". With the kernel's multipath, controllers that reach the same
    // namespace have one in common, and it stays until the last of them goes.
    std::string name;
    // Of namespace and subsystem: equal where two controllers reach the same namespace.
    std::string identity;
    uint32_t nsid = 0; // the drive's own number, which need not be the one in the name
    uint64_t bytes = 0;
    uint32_t block_bytes = 0;
    std::vector<device_use> uses;
};

struct nvme_device {
    std::string bdf;        // "0000:01:00.0"
    std::string controller; // the kernel's name, "nvme0"; empty: not bound to nvme
    std::string model, serial;
    std::string driver; // "nvme", "vqlane", "vfio-pci"; empty: none
    // "translated"; "lazy": the same, but what is unmapped stays in reach for some 10 ms;
    // "passthrough", "none", or the kernel's word for another
    std::string iommu;
    bool persistent = false;                // bound to the module at boot (cli/device_boot.h)
    std::vector<nvme_namespace> namespaces; // block devices
    size_t active = 1;                      // namespaces, as the module counts them if it is asked
    std::string trouble;                    // what the module says is wrong with it
    std::vector<std::string> openers;       // of the module's device: "vqlaned (pid 17)"
};

// Every NVMe function, by address. Fails where there is no PCI bus to be seen.
result<std::vector<nvme_device>> list_devices(const host_tree& host);

// The one that @name means: a PCI address (with or without its domain), a block device of the nvme
// driver or a link to one, or a controller (/dev/nvme0).
result<const nvme_device*> find_device(const host_tree& host,
                                       const std::vector<nvme_device>& devices,
                                       const std::string& name);

// The PCI address of that one.
result<std::string> device_address(const host_tree& host, const std::string& name);

// The namespaces for which the nvme driver that has the function made a block device, without uses.
std::vector<nvme_namespace> kernel_namespaces(const host_tree& host, const std::string& bdf);

// What is said against taking @device from the kernel, the worst first.
std::vector<device_use> objections(const nvme_device& device,
                                   const std::vector<nvme_device>& devices);

nlohmann::json device_json(const std::vector<nvme_device>& devices);
std::string device_table(const std::vector<nvme_device>& devices);

bool path_exists(const std::string& path);
// Contents of a sysfs attribute without the blanks around it; empty where it cannot be read.
std::string read_attribute(const std::string& path);
// The last name in the path that a symbolic link leads to; empty where there is none.
std::string link_name(const std::string& path);

} // namespace vql
