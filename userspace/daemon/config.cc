// SPDX-License-Identifier: GPL-2.0-only
#include "daemon/config.h"

#include "daemon/document.h"

#include <vqlane/limits.h>
#include <vqlane/vring.h>

#include <algorithm>
#include <bit>
#include <climits>
#include <cstdio>
#include <string_view>
#include <sys/un.h>

#include <nlohmann/json.hpp>

namespace vql {

namespace {

using nlohmann::json;

constexpr size_t max_path_bytes = PATH_MAX - 1;
constexpr size_t max_socket_bytes = sizeof(sockaddr_un::sun_path) - 1;
constexpr uint64_t max_disk_bytes = 1ull << 60;
constexpr uint64_t min_chunk_bytes = 1ull << VQL_MIN_CHUNK_SHIFT;
constexpr uint64_t max_chunk_bytes = 1ull << VQL_MAX_CHUNK_SHIFT;
constexpr int max_cpu = 1023;
constexpr uint32_t max_spin_us = 1'000'000;
constexpr uint32_t max_iops = 100'000'000;
const std::string control_socket = "control.sock";
const std::string file_prefix = "file:", nvme_prefix = "nvme:";

bool read_chunk_size(const spot& at, uint64_t& out) {
    if (!read_size(at, true, out))
        return false;
    if (!std::has_single_bit(out) || out < min_chunk_bytes || out > max_chunk_bytes)
        return at.wrong(at.shown() + " is not a power of two between 64K and 1G");
    return true;
}

bool read_name(const spot& at, std::string& out) {
    constexpr std::string_view allowed =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-";

    if (!read_string(at, out))
        return false;
    if (out.empty() || out.size() >= VQL_DISK_NAME_BYTES ||
        out.find_first_not_of(allowed) != out.npos || out == "." || out == "..")
        return at.wrong(
            at.shown() +
            " is not a name, expected 1 to 63 of A-Z a-z 0-9 _ . - (not \".\", \"..\")");
    return true;
}

// What the guest's system may make a file name or a word of.
bool read_serial(const spot& at, std::string& out) {
    if (!read_string(at, out))
        return false;
    if (out.empty() || out.size() > VQL_ID_BYTES ||
        std::any_of(out.begin(), out.end(), [](char c) { return c <= ' ' || c > '~' || c == '/'; }))
        return at.wrong(at.shown() + " is not a serial number, expected 1 to " +
                        std::to_string(VQL_ID_BYTES) +
                        " printable ASCII characters without blanks and /");
    return true;
}

bool read_mode(const spot& at, uint32_t& out) {
    std::string text = at.value.is_string() ? at.value.get<std::string>() : "";

    if (text.size() < 3 || text.size() > 4 || text.find_first_not_of("01234567") != text.npos ||
        (text.size() == 4 && text[0] != '0'))
        return at.wrong(at.shown() + " is not a file mode, expected an octal string like \"0660\"");
    out = static_cast<uint32_t>(std::stoul(text, nullptr, 8));
    return true;
}

// The name of a user or group, or its number; whether it is there is for the machine to say.
bool read_account(const spot& at, const char* what, std::string& out) {
    // From 2^63 up, and so not a number here, where it is negative.
    if (at.value.is_number_integer() && at.value.get<uint64_t>() < UINT32_MAX)
        out = at.shown();
    else if (!read_string(at, out))
        return false;
    if (out.empty() || out.size() > 255 || out.find_first_of(std::string(":/\0\n", 4)) != out.npos)
        return at.wrong(at.shown() + " is not the name of " + what);
    return true;
}

bool read_pollers(const spot& at, std::vector<int>& out) {
    if (!at.value.is_array() || at.value.empty() || at.value.size() > VQL_MAX_POLLERS)
        return at.wrong("expected an array of 1 to " + std::to_string(VQL_MAX_POLLERS) +
                        " CPU numbers");
    out.clear();
    bool good = true;
    for (size_t i = 0; i < at.value.size(); i++) {
        int cpu = 0;
        if (!read_range(at[i], 0, max_cpu, cpu))
            good = false;
        else if (std::find(out.begin(), out.end(), cpu) != out.end())
            good = at[i].wrong("CPU " + std::to_string(cpu) + " is in the list already");
        else
            out.push_back(cpu);
    }
    return good;
}

bool read_queue_size(const spot& at, uint32_t& out) {
    return read_integer(
        at,
        "a power of two between " + std::to_string(VQL_MIN_QUEUE_SIZE) + " and " +
            std::to_string(VQL_MAX_QUEUE_SIZE),
        [](uint64_t n) {
            return n <= VQL_MAX_QUEUE_SIZE && vql_queue_size_valid(static_cast<uint32_t>(n));
        },
        out);
}

bool read_spin(const spot& at, bool& always) {
    return read_word(at, {word<bool>{"always", true}}, always);
}

constexpr word<bpf_mode> bpf_words[] = {
    {"auto", bpf_mode::automatic}, {"required", bpf_mode::required}, {"off", bpf_mode::off}};
constexpr word<memory_registration> registration_words[] = {
    {"auto", memory_registration::automatic},
    {"always", memory_registration::always},
    {"never", memory_registration::never}};
constexpr word<log_level> level_words[] = {{"error", log_level::error},
                                           {"warning", log_level::warning},
                                           {"info", log_level::info},
                                           {"debug", log_level::debug}};
constexpr word<target_type> type_words[] = {
    {"uring", target_type::uring}, {"null", target_type::null}, {"nvme", target_type::nvme}};
constexpr word<frontend_type> frontend_words[] = {{"vhost-user", frontend_type::vhost_user},
                                                  {"vdpa", frontend_type::vdpa}};
constexpr word<bool> format_words[] = {{"raw", true}};
constexpr word<lane_mode> lane_words[] = {
    {"auto", lane_mode::automatic}, {"poll", lane_mode::poll}, {"kernel", lane_mode::kernel}};

// domain:bus:device.function, all in lower-case hexadecimal, as sysfs names it.
bool is_pci_address(std::string_view s) {
    const std::string_view form = "hhhh:hh:hh.f";
    if (s.size() != form.size())
        return false;
    for (size_t i = 0; i < s.size(); i++) {
        const bool digit = s[i] >= '0' && s[i] <= '9';
        const bool ok = form[i] == 'h'   ? digit || (s[i] >= 'a' && s[i] <= 'f')
                        : form[i] == 'f' ? s[i] >= '0' && s[i] <= '7'
                                         : s[i] == form[i];
        if (!ok)
            return false;
    }
    return true;
}

constexpr uint32_t max_nsid = 0xfffffffe; // NVMe 2.0 §3.2.1.2

bool read_pci_address(const spot& at, std::string& out) {
    if (!read_string(at, out))
        return false;
    if (!is_pci_address(out))
        return at.wrong(at.shown() + " is not a PCI address like \"0000:01:00.0\" (see: vqlane "
                                     "device list)");
    return true;
}

constexpr field<config> daemon_fields[] = {
    {"run_dir",
     [](const spot& at, config& c) {
         return read_path(at, max_socket_bytes - 1 - control_socket.size(), c.run_dir);
     }},
    {"state_dir",
     [](const spot& at, config& c) { return read_path(at, max_path_bytes, c.state_dir); }},
    {"bpf_dir", [](const spot& at, config& c) { return read_path(at, max_path_bytes, c.bpf_dir); }},
    {"bpf", [](const spot& at, config& c) { return read_word(at, bpf_words, c.bpf); }},
    {"pollers", [](const spot& at, config& c) { return read_pollers(at, c.pollers); }},
    {"spin_us",
     [](const spot& at, config& c) {
         c.spin_always = false;
         return read_range(at, 0, max_spin_us, c.spin_us);
     }},
    {"spin", [](const spot& at, config& c) { return read_spin(at, c.spin_always); }},
    {"register_memory",
     [](const spot& at, config& c) {
         return read_word(at, registration_words, c.register_memory);
     }},
    {"allow_untranslated_dma",
     [](const spot& at, config& c) { return read_bool(at, c.allow_untranslated_dma); }},
    {"promote_iops",
     [](const spot& at, config& c) { return read_range(at, 10u, max_iops, c.promote_iops); }},
    {"demote_iops",
     [](const spot& at, config& c) { return read_range(at, 0u, max_iops, c.demote_iops); }},
    {"log_level", [](const spot& at, config& c) { return read_word(at, level_words, c.level); }},
};

constexpr field<target_config> target_fields[] = {
    {"name", [](const spot& at, target_config& t) { return read_name(at, t.name); }, true},
    {"type", [](const spot& at, target_config& t) { return read_word(at, type_words, t.type); },
     true},
    {"path",
     [](const spot& at, target_config& t) { return read_path(at, max_path_bytes, t.path); }},
    {"format", [](const spot& at, target_config& t) { return read_word(at, format_words, t.raw); }},
    {"size", [](const spot& at, target_config& t) { return read_size(at, false, t.bytes); }},
    {"device", [](const spot& at, target_config& t) { return read_pci_address(at, t.device); }},
    {"namespace",
     [](const spot& at, target_config& t) { return read_range(at, 1u, max_nsid, t.nsid); }},
};

constexpr field<extent_config> extent_fields[] = {
    {"target", [](const spot& at, extent_config& e) { return read_string(at, e.target); }, true},
    {"offset", [](const spot& at, extent_config& e) { return read_size(at, true, e.offset); }},
    {"length", [](const spot& at, extent_config& e) { return read_size(at, false, e.length); }},
};

bool read_whole_target(const spot& at, disk_config& d) {
    return read_string(at, d.extents.emplace_back().target);
}

bool read_whole_file(const spot& at, disk_config& d) {
    std::string path;
    extent_config& whole = d.extents.emplace_back();
    if (!read_path(at, max_path_bytes, path))
        return false;
    whole.target = file_prefix + path;
    return true;
}

bool read_extents(const spot& at, disk_config& d) {
    // How many is bounded by the length of a file or request; the rest by check_extents().
    if (!read_tables<extent_config>(at, SIZE_MAX, extent_fields, nullptr, d.extents))
        return false;
    return !at.value.empty() || at.wrong("expected at least one extent");
}

constexpr field<disk_config> disk_fields[] = {
    {"name", [](const spot& at, disk_config& d) { return read_name(at, d.name); }, true},
    {"target", read_whole_target},
    {"file", read_whole_file},
    {"format", [](const spot& at, disk_config& d) { return read_word(at, format_words, d.raw); }},
    {"extents", read_extents},
    {"size", [](const spot& at, disk_config& d) { return read_size(at, false, d.bytes); }},
    {"chunk_size",
     [](const spot& at, disk_config& d) { return read_chunk_size(at, d.chunk_bytes); }},
    {"read_only", [](const spot& at, disk_config& d) { return read_bool(at, d.read_only); }},
    {"serial", [](const spot& at, disk_config& d) { return read_serial(at, d.serial); }},
    {"discard", [](const spot& at, disk_config& d) { return read_bool(at, d.discard); }},
    {"queues",
     [](const spot& at, disk_config& d) { return read_range(at, 1, VQL_MAX_QUEUES, d.queues); }},
    {"queue_size",
     [](const spot& at, disk_config& d) { return read_queue_size(at, d.queue_size); }},
    {"frontend",
     [](const spot& at, disk_config& d) { return read_word(at, frontend_words, d.frontend); }},
    {"lane", [](const spot& at, disk_config& d) { return read_word(at, lane_words, d.lane); }},
    {"socket",
     [](const spot& at, disk_config& d) { return read_path(at, max_socket_bytes, d.socket); }},
    {"socket_mode",
     [](const spot& at, disk_config& d) { return read_mode(at, d.socket_mode.emplace()); }},
    {"socket_user",
     [](const spot& at, disk_config& d) { return read_account(at, "a user", d.socket_user); }},
    {"socket_group",
     [](const spot& at, disk_config& d) { return read_account(at, "a group", d.socket_group); }},
};

bool read_daemon(const spot& at, config& c) {
    bool good = read_table<config>(at, daemon_fields, c);
    if (at.value.is_object() && at.has("spin") && at.has("spin_us"))
        good = at.wrong("spin", "spin_us is given too, expected one of the two");
    return good;
}

// Which keys each type of target needs, and which it may have.
bool check_target(const spot& at, const target_config& t) {
    struct rule {
        const char* type;
        const char* needed;
        const char* allowed; // besides; may be null
    };
    const rule r = t.type == target_type::null   ? rule{"null", "size", nullptr}
                   : t.type == target_type::nvme ? rule{"nvme", "device", "namespace"}
                                                 : rule{"uring", "path", "format"};
    if (!at.good("type"))
        return false;
    bool good = true;
    for (const char* key : {"path", "format", "size", "device", "namespace"}) {
        const std::string_view k = key;
        if (at.has(key) && k != r.needed && (!r.allowed || k != r.allowed))
            good = at.wrong(key, std::string("not for a ") + r.type + " target, which needs " +
                                     r.needed);
    }
    if (!at.has(r.needed))
        good = at.wrong(r.needed, std::string("missing, a ") + r.type + " target needs it");
    return good;
}

// Chunks are whole on the target and on the disk; only the disk's last one may be cut short.
bool check_extents(const spot& at, const disk_config& d) {
    const bool own_chunk = at.good("chunk_size");
    const uint64_t chunk = own_chunk ? d.chunk_bytes : min_chunk_bytes;
    const std::string unaligned = std::string(" is not a multiple of ") +
                                  (own_chunk ? "chunk_size" : "64K, the smallest chunk");
    uint64_t total = 0;
    bool total_known = true, good = true;

    for (size_t i = 0; i < d.extents.size(); i++) {
        const extent_config& e = d.extents[i];
        if (e.offset % chunk)
            good = at["extents"][i]["offset"].wrong(at["extents"][i]["offset"].shown() + unaligned);
        if (e.length % chunk && i + 1 < d.extents.size())
            good = at["extents"][i]["length"].wrong(at["extents"][i]["length"].shown() + unaligned +
                                                    ", and this is not the last extent");
        total_known = total_known && e.length;
        total += e.length;
        if (total > max_disk_bytes)
            return at["extents"][i].wrong("the extents up to here make more than 2^60 bytes");
    }
    if (good && total_known && at.good("size") && d.bytes > total)
        return at["size"].wrong(at["size"].shown() + " is more than the extents make (" +
                                std::to_string(total) + " bytes)");
    return good;
}

// What a disk says of where its bytes rest: one of three keys.
bool check_storage(const spot& at, const disk_config& d) {
    std::string first;
    for (const char* key : {"target", "file", "extents"}) {
        if (!at.has(key))
            continue;
        if (!first.empty())
            return at.wrong(key, first + " is given too, expected one of target, file and extents");
        first = key;
    }
    if (first.empty())
        return at.wrong("expected target, file or extents");
    if (at.has("format") && first != "file")
        return at.wrong("format", "goes with file; of other targets their [[target]] says it");
    return !at.good("extents") || check_extents(at, d);
}

bool check_disk(const spot& at, const disk_config& d) {
    bool good = true;
    // BPF_DIR/NAME is a disk's folder; these are there for all disks.
    for (const char* taken : {"disks", "kernel_stats", "stats_tables", "tables", "trace"})
        if (d.name == taken)
            good = at.wrong("name", at["name"].shown() + " is reserved, expected another name");
    if (!check_storage(at, d))
        good = false;
    if (at.has("frontend") && !at.good("frontend"))
        return false;
    if (d.frontend == frontend_type::vdpa) {
        for (const char* key : {"socket", "socket_mode", "socket_user", "socket_group"})
            if (at.has(key))
                good = at.wrong(key, "a vdpa disk has no socket");
    } else if (at.has("lane")) {
        good = at.wrong("lane", "for vdpa disks only: the module has no queues of others");
    }
    return good;
}

constexpr field<config> document_fields[] = {
    {"daemon", read_daemon},
    {"target",
     [](const spot& at, config& c) {
         return read_tables<target_config>(at, VQL_MAX_TARGETS, target_fields, check_target,
                                           c.targets);
     }},
    {"disk",
     [](const spot& at, config& c) {
         return read_tables<disk_config>(at, VQL_MAX_DISKS, disk_fields, check_disk, c.disks);
     }},
};

} // namespace

bool read_document(const spot& at, config& c) {
    return read_table<config>(at, document_fields, c);
}

std::string wrong_rates(const config& c) {
    if (c.demote_iops < c.promote_iops)
        return {};
    return std::to_string(c.demote_iops) + " is not below promote_iops, " +
           std::to_string(c.promote_iops) + ": a queue would change lanes for ever";
}

result<void> override_daemon(const json& keys, config& c) {
    const origin from;
    problems found;
    const spot at{keys, "", from, found};
    read_daemon(at, c);
    if (found.empty())
        if (const std::string why = wrong_rates(c); !why.empty())
            at.wrong("demote_iops", why);
    if (!found.empty())
        return found.joined();
    return {};
}

std::optional<target_config> target_named(const std::string& name) {
    target_config t;
    t.name = name;
    if (name.starts_with(file_prefix + "/")) {
        t.path = name.substr(file_prefix.size());
        return t;
    }
    const size_t slash = name.rfind('/');
    if (!name.starts_with(nvme_prefix) || slash == name.npos)
        return {};
    t.type = target_type::nvme;
    t.device = name.substr(nvme_prefix.size(), slash - nvme_prefix.size());
    const std::string nsid = name.substr(slash + 1);
    if (!is_pci_address(t.device) || nsid.empty() || nsid.size() > 9 || nsid[0] == '0' ||
        nsid.find_first_not_of("0123456789") != nsid.npos)
        return {};
    t.nsid = static_cast<uint32_t>(std::stoul(nsid));
    return t;
}

bool made_for_disk(const std::string& target_name) {
    return target_name.find(':') != target_name.npos; // names in a configuration have no colon
}

void add_named_targets(const disk_config& d, std::vector<target_config>& all) {
    for (const extent_config& e : d.extents) {
        auto named = target_named(e.target);
        if (!named || std::any_of(all.begin(), all.end(),
                                  [&](const target_config& t) { return t.name == e.target; }))
            continue;
        named->raw = d.raw;
        named->read_only = d.read_only && named->type == target_type::uring;
        all.push_back(std::move(*named));
    }
}

std::string served_file(const config& c) {
    std::string name = "served" + c.run_dir;
    std::replace(name.begin(), name.end(), '/', '-');
    return c.state_dir + "/" + name;
}

void decide_access(config& c) {
    for (target_config& t : c.targets) {
        const auto on_it = [&](const disk_config& d) {
            return std::any_of(d.extents.begin(), d.extents.end(),
                               [&](const extent_config& e) { return e.target == t.name; });
        };
        t.read_only = t.type == target_type::uring &&
                      std::any_of(c.disks.begin(), c.disks.end(), on_it) &&
                      std::none_of(c.disks.begin(), c.disks.end(),
                                   [&](const disk_config& d) { return !d.read_only && on_it(d); });
    }
}

result<disk_config> parse_disk(const json& request, std::vector<target_config>& own_targets) {
    const origin from;
    json table = request;
    disk_config disk;
    problems found;

    own_targets.clear();
    if (table.is_object())
        table.erase("op");
    const spot at{table, "", from, found};
    read_table<disk_config>(at, disk_fields, disk);
    if (table.is_object())
        check_disk(at, disk);
    if (!found.empty())
        return found.joined();
    add_named_targets(disk, own_targets);
    return disk;
}

std::string disk_serial(const disk_config& disk) {
    const std::string& name = disk.name;
    if (!disk.serial.empty())
        return disk.serial;
    if (name.size() <= VQL_ID_BYTES)
        return name;
    uint64_t hash = 0xcbf29ce484222325; // FNV-1a
    for (const char c : name)
        hash = (hash ^ uint8_t(c)) * 0x100000001b3;
    char digits[17];
    std::snprintf(digits, sizeof(digits), "%016llx", static_cast<unsigned long long>(hash));
    constexpr size_t hashed = 10;
    return name.substr(0, VQL_ID_BYTES - 1 - hashed) + "-" + std::string(digits, hashed);
}

result<std::string> disk_socket(const std::string& run_dir, const disk_config& disk) {
    const std::string path =
        disk.socket.empty() ? run_dir + "/" + disk.name + ".sock" : disk.socket;

    if (path.size() > max_socket_bytes)
        return error{"its socket " + path + " has " + std::to_string(path.size()) +
                     " bytes, expected at most " + std::to_string(max_socket_bytes) +
                     ": shorten run_dir or set socket"};
    if (path == run_dir + "/" + control_socket)
        return error{"its socket " + path + " is the control socket, expected another path"};
    return path;
}

} // namespace vql
