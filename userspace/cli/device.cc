// SPDX-License-Identifier: GPL-2.0-only
#include "cli/device.h"

#include "base/kmod.h"
#include "base/signature.h"
#include "cli/device_boot.h"
#include "cli/table.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>

#include <nlohmann/json.hpp>

namespace vql {

namespace {

namespace fs = std::filesystem;
using nlohmann::json;

// Which programs have which device open, by its path: "qemu-system-x86 (pid 17)". Programs
// in containers are seen as well, by the path that they opened.
using openers = std::map<std::string, std::vector<std::string>>;

// In order; empty where the folder cannot be read.
std::vector<std::string> entries(const std::string& folder) {
    std::vector<std::string> names;
    std::error_code failed;

    for (fs::directory_iterator at(folder, failed), end; !failed && at != end; at.increment(failed))
        names.push_back(at->path().filename());
    std::sort(names.begin(), names.end());
    return names;
}

std::string trimmed(std::string text) {
    constexpr const char* blanks = " \t\r\n";

    text.erase(0, text.find_first_not_of(blanks));
    text.erase(text.find_last_not_of(blanks) + 1);
    return text;
}

template <class T>
T number(const std::string& attribute) {
    return static_cast<T>(std::strtoull(read_attribute(attribute).c_str(), nullptr, 10));
}

openers find_openers(const host_tree& host) {
    openers found;

    for (const std::string& pid : entries(host.proc)) {
        if (pid.find_first_not_of("0123456789") != pid.npos)
            continue;
        const std::string process = host.proc + "/" + pid;
        for (const std::string& fd : entries(process + "/fd")) {
            std::error_code failed;
            const std::string path = fs::read_symlink(process + "/fd/" + fd, failed);
            if (failed || path.compare(0, host.dev.size() + 1, host.dev + "/") != 0)
                continue;
            const std::string who = read_attribute(process + "/comm") + " (pid " + pid + ")";
            std::vector<std::string>& all = found[path];
            if (std::find(all.begin(), all.end(), who) == all.end())
                all.push_back(who);
        }
    }
    return found;
}

// proc_pid_mountinfo(5) has blanks and the like as \040.
std::string unescape(const std::string& text) {
    std::string plain;

    for (size_t i = 0; i < text.size(); i++) {
        if (text[i] == '\\' && i + 3 < text.size()) {
            plain += static_cast<char>(std::strtol(text.substr(i + 1, 3).c_str(), nullptr, 8));
            i += 3;
        } else {
            plain += text[i];
        }
    }
    return plain;
}

// Where a block device is mounted, as far as this mount namespace goes.
std::vector<std::string> mount_points(const host_tree& host, const std::string& name) {
    const std::string number = read_attribute(host.sys + "/class/block/" + name + "/dev");
    std::ifstream mounts(host.proc + "/self/mountinfo");
    std::vector<std::string> points;

    for (std::string line; std::getline(mounts, line);) {
        std::istringstream fields(line);
        std::string id, parent, device, root, point, word;
        fields >> id >> parent >> device >> root >> point;
        while (fields >> word && word != "-")
            ;
        fields >> word >> word; // type, then source: btrfs shows a device number of its own
        if (device == number || word == host.dev + "/" + name)
            points.push_back(unescape(point));
    }
    return points;
}

bool is_swap(const host_tree& host, const std::string& name) {
    std::ifstream swaps(host.proc + "/swaps");
    for (std::string line; std::getline(swaps, line);)
        if (line.substr(0, line.find_first_of(" \t")) == host.dev + "/" + name)
            return true;
    return false;
}

// What is known of a disk or partition by its name alone.
void add_named_uses(const host_tree& host, const openers& open, const std::string& name,
                    std::vector<device_use>& uses) {
    const std::string node = host.dev + "/" + name;
    const auto absolute = [&](const std::string& text) {
        uses.push_back({node + text, objection::absolute});
    };

    for (const std::string& point : mount_points(host, name))
        absolute(" is mounted on " + point);
    if (is_swap(host, name))
        absolute(" is swap");
    for (const std::string& holder : entries(host.sys + "/class/block/" + name + "/holders")) {
        const std::string mapped = read_attribute(host.sys + "/class/block/" + holder + "/dm/name");
        absolute(" is held by " + holder + (mapped.empty() ? "" : " (" + mapped + ")"));
    }
    if (auto at = open.find(node); at != open.end())
        for (const std::string& who : at->second)
            absolute(" is open in " + who);
}

// Reads the device itself: the only things that sysfs does not tell.
void add_probed_uses(const host_tree& host, nvme_namespace& ns, bool partitioned) {
    const std::string node = host.dev + "/" + ns.name;
    const bool named = !ns.uses.empty();
    std::vector<uint8_t> head(signature_bytes);
    size_t have = 0;

    // O_EXCL: mounts in other mount namespaces, ZFS, md and all else in the kernel refuse it. Held
    // for no longer than it takes to close it, lest a mount fails that comes right now.
    unique_fd fd(::open(node.c_str(), O_RDONLY | O_EXCL | O_CLOEXEC));
    if (!fd && errno == EBUSY) {
        if (!named)
            ns.uses.push_back({node + " is in use in the kernel (perhaps mounted elsewhere, as in "
                                      "a container)",
                               objection::absolute});
        return;
    }
    fd.reset(fd ? ::open(node.c_str(), O_RDONLY | O_CLOEXEC) : -1);
    if (!fd) {
        ns.uses.push_back(
            {"what is on it is unknown: " + errno_error(node, errno).text, objection::unforced});
        return;
    }
    if (partitioned)
        return; // what the whole begins with is the partition table
    while (have < head.size()) {
        const ssize_t n = ::read(fd.get(), head.data() + have, head.size() - have);
        if (n <= 0)
            break;
        have += static_cast<size_t>(n);
    }
    const signature found = signature_of({head.data(), have});
    if (found.name)
        ns.uses.push_back(
            {node + " holds " + found.name, found.member ? objection::unforced : objection::note});
}

// "nvme0n1", or "nvme0c1n1": the path through controller 1 to the multipath disk nvme0n1.
bool parse_namespace(const std::string& entry, nvme_namespace& ns) {
    unsigned subsystem = 0, controller = 0, index = 0;

    if (std::sscanf(entry.c_str(), "nvme%uc%un%u", &subsystem, &controller, &index) != 3 &&
        std::sscanf(entry.c_str(), "nvme%un%u", &subsystem, &index) != 2)
        return false;
    ns.name = "nvme" + std::to_string(subsystem) + "n" + std::to_string(index);
    return true;
}

void add_uses(const host_tree& host, const openers& open, nvme_namespace& ns) {
    const std::string disk = host.sys + "/class/block/" + ns.name;
    size_t partitions = 0;

    add_named_uses(host, open, ns.name, ns.uses);
    // The same namespace as a character device (nvme-generic): "ng0n1".
    if (auto at = open.find(host.dev + "/ng" + ns.name.substr(4)); at != open.end())
        for (const std::string& who : at->second)
            ns.uses.push_back({at->first + " is open in " + who, objection::absolute});
    for (const std::string& entry : entries(disk))
        if (path_exists(disk + "/" + entry + "/partition")) {
            add_named_uses(host, open, entry, ns.uses);
            partitions++;
        }
    add_probed_uses(host, ns, partitions != 0);
    if (partitions)
        ns.uses.push_back({host.dev + "/" + ns.name + " has " + std::to_string(partitions) +
                               (partitions == 1 ? " partition" : " partitions"),
                           objection::unforced});
}

std::string iommu_of(const std::string& function) {
    const std::string type = read_attribute(function + "/iommu_group/type");

    if (!path_exists(function + "/iommu_group"))
        return "none";
    if (type == "DMA")
        return "translated";
    if (type == "DMA-FQ")
        return "lazy";
    return type == "identity" ? "passthrough" : type.empty() ? "unknown" : type;
}

// The kernel's name for it, "nvme0"; empty: the nvme driver does not have it.
std::string controller_of(const host_tree& host, const std::string& bdf) {
    const std::vector<std::string> controllers = entries(host.function(bdf) + "/nvme");
    return controllers.empty() ? "" : controllers.front();
}

template <size_t N>
std::string padded_text(const char (&field)[N]) {
    return trimmed(std::string(field, strnlen(field, N)));
}

// Of a drive that sysfs has no more to say about. Without the right to ask, that stays unknown.
void ask_module(const host_tree& host, nvme_device& d) {
    const auto ctrl = kmod_ctrl::open(d.bdf, host.dev + "/vqlane");
    if (!ctrl)
        return;
    const auto info = ctrl->info();
    if (!info)
        return;
    d.model = padded_text(info->model);
    d.serial = padded_text(info->serial);
    d.active = info->namespaces;
    if (info->state == VQL_CTRL_DEAD)
        d.trouble = "has failed: see the kernel log; unbind and bind it to try again";
    else if (info->flags & VQL_CTRL_SUSPENDED)
        d.trouble = "is suspended, as its host is";
    else if (info->state == VQL_CTRL_RESETTING)
        d.trouble = "is being reset";
    else if (info->critical_warning)
        d.trouble = "SMART critical warning " + std::to_string(info->critical_warning);
}

nvme_device inspect_device(const host_tree& host, const openers& open, const std::string& bdf) {
    const std::string function = host.function(bdf);
    nvme_device d;

    d.bdf = bdf;
    d.driver = link_name(function + "/driver");
    d.iommu = iommu_of(function);
    d.persistent = is_persistent(host, bdf);
    if (auto at = open.find(host.vqlane_node(bdf)); at != open.end())
        d.openers = at->second;
    if (d.driver == "vqlane")
        ask_module(host, d);
    d.controller = controller_of(host, bdf);
    if (d.controller.empty())
        return d;
    d.model = read_attribute(function + "/nvme/" + d.controller + "/model");
    d.serial = read_attribute(function + "/nvme/" + d.controller + "/serial");
    d.namespaces = kernel_namespaces(host, bdf);
    for (nvme_namespace& ns : d.namespaces)
        add_uses(host, open, ns);
    return d;
}

// For people and for JSON: one text for each use.
std::vector<std::string> use_texts(const nvme_device& d) {
    std::vector<std::string> texts;

    for (const nvme_namespace& ns : d.namespaces)
        for (const device_use& use : ns.uses)
            texts.push_back(use.text);
    for (const std::string& who : d.openers)
        texts.push_back("open in " + who);
    if (!d.trouble.empty())
        texts.push_back(d.trouble);
    return texts;
}

// "01:00.0" is short for "0000:01:00.0".
std::string full_address(const std::string& name) {
    unsigned bus = 0, slot = 0, function = 0;
    int used = 0;

    if (std::sscanf(name.c_str(), "%2x:%2x.%1x%n", &bus, &slot, &function, &used) == 3 &&
        static_cast<size_t>(used) == name.size())
        return "0000:" + name;
    return name;
}

} // namespace

bool path_exists(const std::string& path) {
    std::error_code failed;
    return fs::exists(path, failed);
}

std::string read_attribute(const std::string& path) {
    std::ifstream file(path);
    std::string text;

    std::getline(file, text, '\0');
    return trimmed(text);
}

std::string link_name(const std::string& path) {
    std::error_code failed;
    return fs::read_symlink(path, failed).filename();
}

result<std::vector<nvme_device>> list_devices(const host_tree& host) {
    const std::string folder = host.sys + "/bus/pci/devices";
    constexpr const char* nvme_class = "0x010802"; // NVM Express I/O controller
    std::vector<nvme_device> devices;

    if (!path_exists(folder))
        return error{folder + " is missing: no PCI bus can be seen here"};
    const openers open = find_openers(host);
    for (const std::string& bdf : entries(folder))
        if (read_attribute(folder + "/" + bdf + "/class") == nvme_class)
            devices.push_back(inspect_device(host, open, bdf));
    return devices;
}

result<const nvme_device*> find_device(const host_tree& host,
                                       const std::vector<nvme_device>& devices,
                                       const std::string& name) {
    const std::string bdf = full_address(name);
    const nvme_device* found = nullptr;
    std::error_code failed;
    // /dev/disk/by-id/… and its like are links.
    const std::string device = fs::path(fs::weakly_canonical(name, failed)).filename();

    for (const nvme_device& d : devices) {
        if (d.bdf == bdf)
            return &d;
        bool means = !d.controller.empty() && d.controller == device;
        for (const nvme_namespace& ns : d.namespaces)
            means |= ns.name == device;
        if (means && found)
            return error{name + " is reached through " + found->bdf + " and " + d.bdf +
                         ": name one of them"};
        if (means)
            found = &d;
    }
    if (found)
        return found;
    if (const std::string type = read_attribute(host.function(bdf) + "/class"); !type.empty())
        return error{bdf + " is no NVMe controller, but a PCI function of class " + type};
    if (path_exists(host.sys + "/class/block/" + device + "/partition"))
        return error{name + " is a partition: name the drive, only all of it can change hands"};
    return error{"no NVMe function " + name +
                 " (vqlane device list shows them; expected an address like 0000:01:00.0, or a "
                 "device like /dev/nvme0n1)"};
}

result<std::string> device_address(const host_tree& host, const std::string& name) {
    auto devices = list_devices(host);
    if (!devices)
        return devices.failure();
    auto found = find_device(host, *devices, name);
    if (!found)
        return found.failure();
    return (*found)->bdf;
}

std::vector<nvme_namespace> kernel_namespaces(const host_tree& host, const std::string& bdf) {
    const std::string controller = host.function(bdf) + "/nvme/" + controller_of(host, bdf);
    std::vector<nvme_namespace> all;

    for (const std::string& entry : entries(controller)) {
        const std::string path = controller + "/" + entry;
        nvme_namespace ns;
        if (!parse_namespace(entry, ns))
            continue;
        const std::string disk = host.sys + "/class/block/" + ns.name;
        ns.identity =
            read_attribute(controller + "/subsysnqn") + " " + read_attribute(path + "/wwid");
        ns.nsid = number<uint32_t>(path + "/nsid");
        // The kernel counts in 512 bytes whatever the blocks are.
        ns.bytes = number<uint64_t>(disk + "/size") * 512;
        ns.block_bytes = number<uint32_t>(disk + "/queue/logical_block_size");
        all.push_back(std::move(ns));
    }
    std::sort(all.begin(), all.end(),
              [](const nvme_namespace& a, const nvme_namespace& b) { return a.nsid < b.nsid; });
    return all;
}

std::vector<device_use> objections(const nvme_device& device,
                                   const std::vector<nvme_device>& devices) {
    std::vector<device_use> all;

    for (const nvme_namespace& ns : device.namespaces) {
        std::string keeper; // through which the kernel's block device stays
        for (const nvme_device& other : devices)
            for (const nvme_namespace& same : other.namespaces) {
                if (&other == &device || same.identity != ns.identity)
                    continue;
                all.push_back({ns.name + " is also reached through " + other.bdf + " (" +
                                   other.controller +
                                   "), which stays with the kernel: who writes where is for you "
                                   "to keep apart",
                               objection::note});
                if (same.name == ns.name)
                    keeper = other.bdf;
                else // it is the other's block device that is in use
                    for (const device_use& use : same.uses)
                        all.push_back({use.text, std::min(use.weight, objection::unforced)});
            }
        for (const device_use& use : ns.uses)
            all.push_back(keeper.empty() ? use
                                         : device_use{use.text + ", and stays so through " + keeper,
                                                      std::min(use.weight, objection::unforced)});
    }
    std::stable_sort(all.begin(), all.end(),
                     [](const device_use& a, const device_use& b) { return a.weight > b.weight; });
    return all;
}

json device_json(const std::vector<nvme_device>& devices) {
    const auto or_null = [](const std::string& text) { return text.empty() ? json() : json(text); };
    json list = json::array();

    for (const nvme_device& d : devices) {
        json namespaces = json::array();
        for (const nvme_namespace& ns : d.namespaces)
            namespaces.push_back({{"nsid", ns.nsid},
                                  {"device", ns.name},
                                  {"size", ns.bytes},
                                  {"block_size", ns.block_bytes}});
        list.push_back({{"device", d.bdf},
                        {"model", or_null(d.model)},
                        {"serial", or_null(d.serial)},
                        {"driver", or_null(d.driver)},
                        {"iommu", d.iommu},
                        {"persistent", d.persistent},
                        {"namespaces", namespaces},
                        {"in_use", use_texts(d)}});
    }
    return list;
}

std::string device_table(const std::vector<nvme_device>& devices) {
    table out({{"DEVICE"},
               {"MODEL"},
               {"SERIAL"},
               {"DRIVER"},
               {"BOOT"},
               {"IOMMU"},
               {"NAMESPACES"},
               {"USE"}});

    for (const nvme_device& d : devices) {
        std::string namespaces, uses;
        for (const nvme_namespace& ns : d.namespaces)
            namespaces += (namespaces.empty() ? "" : ", ") + std::to_string(ns.nsid) + ": " +
                          ns.name + " " + human_size(ns.bytes);
        for (const std::string& use : use_texts(d))
            uses += (uses.empty() ? "" : "; ") + use;
        out.add({d.bdf, or_dash(d.model), or_dash(d.serial), or_dash(d.driver),
                 d.persistent ? "vqlane" : "-", d.iommu, or_dash(namespaces), or_dash(uses)});
    }
    return out.text();
}

} // namespace vql
