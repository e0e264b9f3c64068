// SPDX-License-Identifier: GPL-2.0-only
#include "daemon/config_files.h"

#include <vqlane/limits.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <map>

namespace vql {

namespace {

// Where @at stands, as @other would say it: the file only if it is another.
std::string seen_from(const spot& other, const spot& at) {
    return at.path +
           (&at.from == &other.from || at.from.file.empty() ? "" : " (" + at.place() + ")");
}

// What is given once, by where that was.
class once {
  public:
    // @owner may give it again.
    bool add(const spot& at, const std::string& key, const std::string& shown,
             const std::string& owner = {}) {
        auto [first, added] = seen_.try_emplace(key, seen{at, owner});
        if (added || (!owner.empty() && first->second.owner == owner))
            return true;
        return at.wrong(shown + " is taken by " + seen_from(at, first->second.at));
    }
    bool has(const std::string& key) const { return seen_.contains(key); }

  private:
    struct seen {
        spot at;
        std::string owner;
    };
    std::map<std::string, seen> seen_;
};

// The same path written in another way. (Other names of one file are for validate.h.)
std::string normal(const std::string& path) {
    return std::filesystem::path(path).lexically_normal().string();
}

// What makes a target one and the same with another; empty: nothing, as for type null.
std::string identity(const target_config& t) {
    switch (t.type) {
    case target_type::uring: return normal(t.path);
    case target_type::nvme: return "nvme:" + t.device + "/" + std::to_string(t.nsid);
    case target_type::null: break;
    }
    return {};
}

// A part of a target, in the order of offsets.
struct part {
    uint64_t offset, end;
    bool read_only;
    size_t disk, extent;
};

// A disk claims parts of targets for itself, unless it and the other only read.
class claims {
  public:
    explicit claims(const config_text& text) : text_(text) {}

    void add(size_t disk) {
        const disk_config& d = text_.settings.disks[disk];
        for (size_t i = 0; i < d.extents.size(); i++) {
            const extent_config& e = d.extents[i];
            const uint64_t end = e.length ? e.offset + e.length : UINT64_MAX;
            of_[e.target].push_back({e.offset, end, d.read_only, disk, i});
        }
    }

    void check() {
        for (auto& [target, parts] : of_)
            check(target, parts);
    }

  private:
    void check(const std::string& target, std::vector<part>& parts) {
        std::stable_sort(parts.begin(), parts.end(),
                         [](const part& a, const part& b) { return a.offset < b.offset; });
        const part* last = nullptr;   // of those before, the one that ends last
        const part* writer = nullptr; // … of those that write
        for (const part& p : parts) {
            const part* const other = p.read_only ? writer : last;
            if (other && other->end > p.offset)
                overlap(target, std::max(p.disk, other->disk) == p.disk ? p : *other,
                        std::max(p.disk, other->disk) == p.disk ? *other : p);
            if (!last || p.end > last->end)
                last = &p;
            if (!p.read_only && (!writer || p.end > writer->end))
                writer = &p;
        }
    }

    void overlap(const std::string& target, const part& later, const part& first) {
        const spot at = text_.extent_place(later.disk, later.extent);
        at.wrong("its part of target " + target + " at offset " + std::to_string(later.offset) +
                 " overlaps that of disk " + text_.settings.disks[first.disk].name + " at offset " +
                 std::to_string(first.offset) + ", " +
                 seen_from(at, text_.extent_place(first.disk, first.extent)));
    }

    const config_text& text_;
    std::map<std::string, std::vector<part>> of_;
};

// What tables say about each other. Places and settings are in @text, problems are noted there.
class references {
  public:
    explicit references(const config_text& text) : text_(text), claims_(text) {}

    void check() {
        for (size_t i = 0; i < text_.targets.size(); i++)
            check_target(text_.targets[i], text_.settings.targets[i]);
        for (size_t i = 0; i < text_.disks.size(); i++)
            check_disk(i);
        claims_.check();
    }

  private:
    void check_target(const spot& at, const target_config& t) {
        if (at.good("name")) {
            names_.push_back(t.name);
            targets_.add(at["name"], t.name, "\"" + t.name + "\"");
        }
        const char* const key = t.type == target_type::uring ? "path" : "device";
        const std::string id = identity(t);
        if (!id.empty() && at.good("type") && at.good(key))
            same_.add(at[key], id, id, t.name);
    }

    void check_disk(size_t i) {
        const spot& at = text_.disks[i];
        const disk_config& d = text_.settings.disks[i];
        // Two of one name would have one socket, too.
        if (!at.good("name") || disks_.add(at["name"], d.name, "\"" + d.name + "\""))
            check_socket(at, d);
        if (at.good("name") && (!at.has("serial") || at.good("serial")))
            serials_.add(at[at.has("serial") ? "serial" : "name"], disk_serial(d),
                         "serial number \"" + disk_serial(d) + "\"");
        // The parts of one that is wrong, or at unknown targets, are compared with no others.
        for (const char* key : {"target", "file", "extents"})
            if (at.has(key) && !at.good(key))
                return;
        bool known = true;
        for (size_t e = 0; e < d.extents.size(); e++)
            known &= check_known(text_.extent_place(i, e), d.extents[e].target);
        if (known)
            claims_.add(i);
    }

    bool check_known(const spot& at, const std::string& name) {
        if (targets_.has(name))
            return true;
        if (const auto named = target_named(name))
            return same_.add(at, identity(*named), identity(*named), name);
        return at.wrong("there is no target " + at.shown() +
                        (names_.empty() ? ", nor any other" : " (known: " + listed(names_) + ")"));
    }

    void check_socket(const spot& at, const disk_config& d) {
        if (d.frontend != frontend_type::vhost_user || !at.good("name") ||
            (at.has("socket") && !at.good("socket")))
            return;
        const spot socket_at = at[at.has("socket") ? "socket" : "name"];
        auto socket = disk_socket(text_.settings.run_dir, d);
        if (!socket)
            socket_at.wrong(socket.failure().text);
        else
            sockets_.add(socket_at, normal(*socket), "\"" + *socket + "\"");
    }

    const config_text& text_;
    once targets_, same_, disks_, sockets_, serials_;
    claims claims_;
    std::vector<std::string> names_;
};

// All that end in ".toml" in @folder, which need not be there.
result<std::vector<std::string>> files_in(const std::string& folder) {
    std::vector<std::string> files;
    std::error_code failed;
    std::filesystem::directory_iterator entries(folder, failed);
    std::error_code none;
    if (failed && (std::filesystem::is_symlink(folder, none) ||
                   (failed.value() != ENOENT && failed.value() != ENOTDIR)))
        return errno_error(folder, failed.value());
    for (; !failed && entries != std::filesystem::directory_iterator(); entries.increment(failed)) {
        const std::filesystem::path& path = entries->path();
        if (path.extension() == ".toml" && !path.filename().string().starts_with("."))
            files.push_back(path.string());
    }
    std::sort(files.begin(), files.end());
    return files;
}

} // namespace

spot config_text::extent_place(size_t disk, size_t i) const {
    const spot& at = disks[disk];
    for (const char* key : {"target", "file"})
        if (at.has(key))
            return at[key];
    return at["extents"][i]["target"];
}

const spot* config_text::daemon_key(const char* key) const {
    for (const spot& at : daemon_keys_)
        if (at.path == std::string("daemon.") + key)
            return &at;
    return nullptr;
}

void config_text::add_file(const std::string& file) {
    document& d = documents_.emplace_back();
    d.from.order = static_cast<unsigned>(documents_.size() - 1);
    if (!load_toml(file, d, found))
        return;
    const spot at{d.root, "", d.from, found};
    const size_t targets_before = settings.targets.size(), disks_before = settings.disks.size();
    read_document(at, settings);
    for (size_t i = targets_before; i < settings.targets.size(); i++)
        targets.push_back(at["target"][i - targets_before]);
    for (size_t i = disks_before; i < settings.disks.size(); i++)
        disks.push_back(at["disk"][i - disks_before]);
    if (!at.has("daemon") || !at["daemon"].value.is_object())
        return;
    daemons.push_back(at["daemon"]);
    for (const auto& item : at["daemon"].value.items()) {
        const spot key = at["daemon"][item.key().c_str()];
        // One of the two is enough, and they are two names of one thing.
        const std::string other = item.key() == "spin"      ? "spin_us"
                                  : item.key() == "spin_us" ? "spin"
                                                            : item.key();
        for (const std::string& name : {item.key(), other}) {
            const spot* const first = daemon_key(name.c_str());
            if (first && &first->from != &key.from) {
                key.wrong("is given in " + first->place() + " too, as " + first->path);
                break;
            }
        }
        daemon_keys_.push_back(key);
    }
}

void config_text::check_daemon() {
    const std::string why = wrong_rates(settings);
    if (why.empty() || daemons.empty())
        return;
    const spot* at = nullptr;
    for (const char* key : {"demote_iops", "promote_iops"}) {
        if (const spot* const given = daemon_key(key); given && !given->good())
            return;
        else if (!at)
            at = given;
    }
    if (at && at->path == "daemon.demote_iops")
        at->wrong(why);
    else
        daemons.back().wrong("demote_iops", why);
}

void load_config(const std::string& path, const nlohmann::json& flags, config_text& out) {
    out.add_file(path);
    const std::string folder = (std::filesystem::path(path).parent_path() / "conf.d").string();
    auto more = files_in(folder);
    if (!more)
        out.found.add_file(origin{folder, 1, {}}, 1, more.failure().text);
    else
        for (const std::string& file : *more)
            out.add_file(file);
    out.check_daemon();
    if (auto ok = override_daemon(flags, out.settings); !ok && out.found.empty())
        out.found.add_file({}, 1, "command line: " + ok.failure().text);
    const auto too_many = [](const std::vector<spot>& all, size_t most) {
        if (all.size() > most)
            all[most].wrong("there are " + std::to_string(all.size()) +
                            " of these in all files, expected at most " + std::to_string(most));
    };
    too_many(out.targets, VQL_MAX_TARGETS);
    too_many(out.disks, VQL_MAX_DISKS);
    references(out).check();
    for (const disk_config& d : out.settings.disks)
        add_named_targets(d, out.settings.targets);
    decide_access(out.settings);
}

} // namespace vql
