// SPDX-License-Identifier: GPL-2.0-only
#include "cli/device_bind.h"

#include "base/fd.h"
#include "cli/device_boot.h"
#include "cli/table.h"

#include <cerrno>
#include <fcntl.h>
#include <filesystem>
#include <fstream>
#include <thread>

namespace vql {

namespace {

constexpr const char* ours = "vqlane";
constexpr const char* kernels = "nvme";

// The kernel's answer is the write's result.
result<void> write_attribute(const std::string& path, const std::string& text) {
    const unique_fd fd(::open(path.c_str(), O_WRONLY | O_TRUNC | O_CLOEXEC));

    if (!fd || ::write(fd.get(), text.data(), text.size()) < 0)
        return errno_error("writing \"" + text.substr(0, text.find('\n')) + "\" to " + path, errno);
    return {};
}

bool wait_for(const host_tree& host, const std::function<bool()>& condition) {
    const auto end = std::chrono::steady_clock::now() + host.patience;

    while (!condition()) {
        if (std::chrono::steady_clock::now() > end)
            return false;
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    return true;
}

bool is_with(const host_tree& host, const std::string& bdf, const std::string& driver) {
    return link_name(host.function(bdf) + "/driver") == driver;
}

// From the driver that has it to none. The kernel returns when the driver has let go.
result<void> take_from(const host_tree& host, const std::string& bdf, const std::string& driver) {
    if (auto done = write_attribute(host.driver(driver) + "/unbind", bdf); !done)
        return done;
    if (!wait_for(host, [&] { return is_with(host, bdf, ""); }))
        return error{"the driver " + driver + " does not let go of " + bdf};
    return {};
}

// To @driver and no other. Writing to its own "bind" tells why its probe failed, as the bus's
// "drivers_probe" does not.
result<void> give_to(const host_tree& host, const std::string& bdf, const std::string& driver) {
    if (auto done = write_attribute(host.driver(driver) + "/bind", bdf); !done)
        return done;
    if (!wait_for(host, [&] { return is_with(host, bdf, driver); }))
        return error{"the driver " + driver + " does not take " + bdf};
    return {};
}

// An empty @driver: none, which leaves it to the drivers' own tables again.
result<void> override_driver(const host_tree& host, const std::string& bdf,
                             const std::string& driver) {
    return write_attribute(host.function(bdf) + "/driver_override", driver + "\n");
}

std::string group_type(const host_tree& host, const std::string& bdf) {
    return host.function(bdf) + "/iommu_group/type";
}

// Other functions of the group that a driver has, for the message: "0000:01:00.1 (xhci_hcd)".
std::string group_neighbours(const host_tree& host, const std::string& bdf) {
    std::string names;
    std::error_code failed;

    for (std::filesystem::directory_iterator
             at(host.function(bdf) + "/iommu_group/devices", failed),
         end;
         !failed && at != end; at.increment(failed)) {
        const std::string other = at->path().filename();
        const std::string driver = link_name(host.function(other) + "/driver");
        if (other != bdf && !driver.empty())
            names += (names.empty() ? "" : ", ") + other + " (" + driver + ")";
    }
    return names;
}

// Between unbinding and binding, when alone the kernel lets the type change. What it was is noted
// first.
result<void> make_strict(const host_tree& host, const std::string& bdf, const progress& say) {
    const std::string type = read_attribute(group_type(host, bdf)), note = host.group_note(bdf);
    std::error_code failed;

    if (type != "DMA-FQ")
        return {};
    std::filesystem::create_directories(std::filesystem::path(note).parent_path(), failed);
    if (!(std::ofstream(note) << type << "\n").flush())
        return error{"writing " + note + ": what the IOMMU group's type was would be forgotten"};
    if (auto done = write_attribute(group_type(host, bdf), "DMA"); !done) {
        const std::string others = group_neighbours(host, bdf);
        std::filesystem::remove(note, failed);
        return error{done.failure().text +
                     ": its IOMMU group invalidates lazily (DMA-FQ), and cannot be made strict" +
                     (others.empty() ? "" : " while drivers have others of the group: " + others) +
                     ". Unbind those, or boot with iommu.strict=1"};
    }
    say(bdf + ": its IOMMU group is strict now (type DMA, was " + type + ")");
    return {};
}

// The reverse, at the same point.
result<void> make_as_it_was(const host_tree& host, const std::string& bdf) {
    const std::string note = host.group_note(bdf), type = read_attribute(note);
    std::error_code failed;

    if (type.empty())
        return {};
    if (read_attribute(group_type(host, bdf)) != type)
        if (auto done = write_attribute(group_type(host, bdf), type); !done)
            return done;
    std::filesystem::remove(note, failed);
    return {};
}

// After a bind that failed: to what it was before. How that went, for the message.
std::string put_back(const host_tree& host, const std::string& bdf, const std::string& driver) {
    result<void> done;

    if (is_with(host, bdf, ours))
        done = take_from(host, bdf, ours);
    if (auto cleared = override_driver(host, bdf, ""); done)
        done = cleared;
    if (auto type = make_as_it_was(host, bdf); done)
        done = type;
    if (done && !driver.empty() && !is_with(host, bdf, driver))
        done = give_to(host, bdf, driver);
    if (!done)
        return bdf + " could not be put back: " + done.failure().text;
    return bdf + (driver.empty() ? " has no driver, as before" : " is with " + driver + " again");
}

// Refuses a drive that is in use, or in use but for @force.
result<void> check_free(const nvme_device& device, const std::vector<nvme_device>& devices,
                        bool force, const progress& say) {
    const std::vector<device_use> all = objections(device, devices);
    const objection worst = all.empty() ? objection::note : all.front().weight;
    const objection bearable = force ? objection::unforced : objection::note;
    std::string text = device.bdf + " stays with the kernel, since";

    if (worst <= bearable) {
        for (const device_use& use : all)
            say("note: " + use.text);
        return {};
    }
    for (const device_use& use : all)
        if (use.weight > bearable)
            text += "\n    " + use.text;
    return error{text + (worst == objection::absolute
                             ? "\nEnd that use first; --force does not override it."
                             : "\n--force takes it nevertheless; what is on it stays as it is.")};
}

// Nobody can mount it between the check and its leaving the kernel. Namespaces that another
// controller keeps are left alone: with --force they may well be in use.
result<std::vector<unique_fd>> claim(const host_tree& host, const nvme_device& device,
                                     const std::vector<nvme_device>& devices) {
    std::vector<unique_fd> claims;

    for (const nvme_namespace& ns : device.namespaces) {
        bool stays = false;
        for (const nvme_device& other : devices)
            for (const nvme_namespace& same : other.namespaces)
                stays |= &other != &device && same.name == ns.name;
        const std::string node = host.dev + "/" + ns.name;
        unique_fd fd(stays ? -1 : ::open(node.c_str(), O_RDONLY | O_EXCL | O_CLOEXEC));
        if (!stays && !fd)
            return errno_error("claiming " + node + " before it leaves the kernel", errno);
        claims.push_back(std::move(fd));
    }
    return claims;
}

void warn_of_iommu(const nvme_device& device, const progress& say) {
    if (device.iommu == "translated" || device.iommu == "lazy")
        return;
    say("warning: no IOMMU translates what " + device.bdf + " reads and writes (" + device.iommu +
        "). vqlaned refuses such a drive unless its configuration has allow_untranslated_dma = "
        "true; then an error in vqlaned, or whoever takes it over, can reach all of this "
        "machine's memory through the drive");
}

result<void> can_bind(const host_tree& host, const nvme_device& device) {
    if (!device.driver.empty() && device.driver != kernels)
        return error{device.bdf + " is bound to " + device.driver +
                     ": have that give it back first (its own tool, or echo " + device.bdf + " >" +
                     host.driver(device.driver) + "/unbind)"};
    if (!path_exists(host.driver(ours)))
        return error{"the module vqlane is not loaded: modprobe vqlane, or insmod vqlane.ko"};
    return {};
}

// From the kernel's hands into the module's; @device is free to go.
result<void> hand_over(const host_tree& host, const nvme_device& device, const progress& say) {
    const std::string& bdf = device.bdf;

    // First, so that in between no other driver takes it.
    if (auto done = override_driver(host, bdf, ours); !done)
        return done;
    if (!device.driver.empty()) {
        if (auto done = take_from(host, bdf, device.driver); !done)
            return done;
        say(bdf + ": taken from " + device.driver);
    }
    if (auto done = make_strict(host, bdf, say); !done)
        return done;
    if (auto done = give_to(host, bdf, ours); !done)
        return error{done.failure().text + " (the kernel log says why: dmesg)"};
    if (!wait_for(host, [&] { return path_exists(host.vqlane_node(bdf)); }))
        return error{host.vqlane_node(bdf) + " does not appear"};
    say(bdf + ": bound to vqlane, " + host.vqlane_node(bdf));
    return {};
}

} // namespace

result<void> bind_device(const host_tree& host, const std::string& name, bool force,
                         const progress& say) {
    auto devices = list_devices(host);
    if (!devices)
        return devices.failure();
    auto found = find_device(host, *devices, name);
    if (!found)
        return found.failure();
    const nvme_device& device = **found;

    if (device.driver == ours) {
        say(device.bdf + ": is bound to vqlane already");
        if (device.iommu == "lazy")
            say("warning: its IOMMU group invalidates lazily (DMA-FQ): vqlane device unbind and "
                "bind it, "
                "which makes it strict, or vqlaned refuses it");
        return {};
    }
    if (auto can = can_bind(host, device); !can)
        return can;
    if (device.driver.empty())
        say("note: no driver has " + device.bdf + ", so that nobody looked at what is on it");
    if (auto free = check_free(device, *devices, force, say); !free)
        return free;
    warn_of_iommu(device, say);
    auto claims = claim(host, device, *devices);
    if (!claims)
        return claims.failure();
    if (auto done = hand_over(host, device, say); !done) {
        claims->clear();
        return error{done.failure().text + "\n" + put_back(host, device.bdf, device.driver)};
    }
    return {};
}

result<void> give_back(const host_tree& host, const std::string& bdf, const progress& say,
                       size_t active) {
    if (auto done = override_driver(host, bdf, ""); !done)
        return done;
    if (auto done = take_from(host, bdf, ours); !done)
        return done;
    say(bdf + ": taken from vqlane");
    if (auto done = make_as_it_was(host, bdf); !done)
        say("note: " + done.failure().text);
    if (!path_exists(host.driver(kernels)))
        return error{bdf + " has no driver now: the nvme driver is not loaded (modprobe nvme)"};
    if (auto done = give_to(host, bdf, kernels); !done)
        return error{done.failure().text + " (the kernel log says why: dmesg)"};

    // The driver looks for namespaces after it was bound.
    std::string disks;
    wait_for(host, [&] { return kernel_namespaces(host, bdf).size() >= active; });
    for (const nvme_namespace& ns : kernel_namespaces(host, bdf))
        disks += (disks.empty() ? "" : ", ") + ns.name + " (" + human_size(ns.bytes) + ")";
    say(bdf + ": bound to nvme, " + (disks.empty() ? "without a namespace" : disks));
    return {};
}

result<void> release_override(const host_tree& host, const std::string& bdf) {
    if (auto done = override_driver(host, bdf, ""); !done)
        return done;
    if (is_with(host, bdf, "") && path_exists(host.driver(kernels)))
        return give_to(host, bdf, kernels);
    return {};
}

result<void> unbind_device(const host_tree& host, const std::string& name, bool force,
                           const progress& say) {
    auto devices = list_devices(host);
    if (!devices)
        return devices.failure();
    auto found = find_device(host, *devices, name);
    if (!found)
        return found.failure();
    const nvme_device& device = **found;
    const std::string& bdf = device.bdf;

    if (device.driver != ours && is_persistent(host, bdf)) // it could not be bound at the last boot
        return forget_device(host, bdf, say);
    if (device.driver != ours)
        return error{bdf +
                     (device.driver.empty() ? " has no driver" : " is with " + device.driver) +
                     ", not with vqlane"};
    if (!device.openers.empty() && !force) {
        std::string text = bdf + " stays with vqlane, since";
        for (const std::string& who : device.openers)
            text += "\n    " + host.vqlane_node(bdf) + " is open in " + who;
        return error{text + "\nRemove its disks and targets first, or end the daemon; with "
                            "--force, disks on it get I/O errors."};
    }
    // First, so that the drive is the kernel's again even if what follows fails.
    if (auto done = forget_device(host, bdf, say); !done)
        return done;
    return give_back(host, bdf, say, device.active);
}

} // namespace vql
