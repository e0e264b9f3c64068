// SPDX-License-Identifier: GPL-2.0-only
#include "daemon/validate.h"

#include "base/account.h"
#include "daemon/look.h"
#include "daemon/volume.h"
#include "engine/raw_record.h"

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <map>
#include <sched.h>
#include <unistd.h>

namespace vql {

namespace {

// The [daemon] key @key, or its element @i; without a place when a flag said it.
void wrong_in_daemon(config_text& text, const char* key, std::optional<size_t> i, bool from_file,
                     const std::string& what) {
    const spot* const at = from_file ? text.daemon_key(key) : nullptr;
    if (at)
        i ? (*at)[*i].wrong(what) : at->wrong(what);
    else
        text.found.add(origin{}, 0, i ? key + ("[" + std::to_string(*i) + "]") : key, what);
}

void check_pollers(config_text& text) {
    const std::vector<int>& cpus = text.settings.pollers;
    const spot* const at = text.daemon_key("pollers");
    const bool from_file = at && at->good() && at->value == nlohmann::json(cpus);
    if (at && !at->good())
        return;
    for (size_t i = 0; i < cpus.size(); i++)
        if (const std::string why = why_not_on(cpus[i]); !why.empty())
            wrong_in_daemon(text, "pollers", i, from_file, why);
}

// One walk over a configuration and what was seen of the files in it.
class machine_check {
  public:
    machine_check(config_text& text, look how, std::chrono::milliseconds limit)
        : text_(text), storage_(how == look::storage), served_(served_file(text.settings)) {
        if (!storage_)
            return;
        for (const target_config& t : text.settings.targets)
            if (t.type == target_type::uring && !t.path.empty())
                paths_.push_back(t.path);
        for (const disk_config& d : text.settings.disks)
            if (auto socket = socket_of(d))
                paths_.push_back(*socket);
        paths_.push_back(text.settings.run_dir);
        seen_ = look_at(paths_, limit);
    }

    void check() {
        if (storage_)
            check_run_dir();
        for (size_t i = 0; i < text_.settings.targets.size(); i++)
            check_target(i);
        for (size_t i = 0; i < text_.disks.size(); i++) {
            if (storage_) {
                check_socket(i);
                check_accounts(i);
            }
            check_size(i);
        }
    }

  private:
    std::optional<std::string> socket_of(const disk_config& d) const {
        if (d.frontend != frontend_type::vhost_user || d.name.empty())
            return {};
        auto path = disk_socket(text_.settings.run_dir, d);
        return path ? std::optional(*path) : std::nullopt;
    }

    void check_run_dir() {
        const std::string& dir = text_.settings.run_dir;
        const sight& s = seen_.at(dir);
        const spot* const at = text_.daemon_key("run_dir");
        const bool from_file = at && at->value == dir;
        if (s.answered && !s.error && !S_ISDIR(s.st.st_mode))
            wrong_in_daemon(text_, "run_dir", {}, from_file, dir + " is not a directory");
        else if (s.error == ENOENT && s.folder_error)
            wrong_in_daemon(text_, "run_dir", {}, from_file,
                            dir + ": the folder that it is to be in does not exist");
    }

    // Where target @i is named first: its own table, or a disk's key.
    std::optional<spot> place_of(size_t i) const {
        const target_config& t = text_.settings.targets[i];
        if (i < text_.targets.size()) {
            const char* const key = t.type == target_type::nvme    ? "device"
                                    : t.type == target_type::uring ? "path"
                                                                   : "size";
            if (!text_.targets[i].good("type") || !text_.targets[i].good(key))
                return {};
            return text_.targets[i][key];
        }
        for (size_t d = 0; d < text_.disks.size(); d++)
            for (size_t e = 0; e < text_.settings.disks[d].extents.size(); e++)
                if (text_.settings.disks[d].extents[e].target == t.name)
                    return text_.extent_place(d, e);
        return {};
    }

    void check_target(size_t i) {
        const target_config& t = text_.settings.targets[i];
        const auto at = place_of(i);
        if (!at || !at->good())
            return;
        if (t.type != target_type::null && !storage_)
            return;
        if (t.type == target_type::null)
            found_[t.name] = make_null_target(t.name, t.bytes);
        else if (t.type == target_type::nvme)
            check_drive(*at, t);
        else
            check_file(*at, t);
    }

    void check_drive(const spot& at, const target_config& t) {
        const std::string device = "/sys/bus/pci/devices/" + t.device;
        std::error_code failed;
        if (!std::filesystem::exists(device, failed))
            at.pending("there is no PCI device " + t.device + " (see: vqlane device list)");
        else if (std::filesystem::read_symlink(device + "/driver", failed).filename() != "vqlane")
            at.pending("drive " + t.device + " is not the vqlane module's; give it that with: " +
                       "vqlane device bind " + t.device);
    }

    void check_file(const spot& at, const target_config& t) {
        const sight& s = seen_.at(t.path);
        if (!s.answered)
            return void(at.pending(t.path + " does not answer (is its storage there?)"));
        if (s.error)
            return void(at.pending(t.path + ": " + std::strerror(s.error)));
        if (!s.block_device && !S_ISREG(s.st.st_mode))
            return void(at.pending(t.path + ": neither a regular file nor a block device"));
        const auto [first, added] = files_.try_emplace(s.identity(), at);
        if (!added)
            return void(at.wrong(t.path + " is another name of " + first->second.shown() + ", " +
                                 first->second.place() + ": " + first->second.path));
        auto seen = std::make_unique<target>();
        seen->kind = target_kind::uring;
        seen->name = t.name;
        seen->path = t.path;
        seen->block_bytes = s.block_bytes;
        seen->bytes =
            (s.block_device ? s.bytes : s.bytes + s.block_bytes - 1) & ~uint64_t(s.block_bytes - 1);
        seen->read_only = s.read_only;
        seen->why_read_only = "can be opened for reading only";
        if (!seen->bytes)
            return void(at.pending(t.path + ": empty, a target needs at least one block"));
        if (!s.other.empty() && !t.raw &&
            !served_.has(t.path, {s.block_device ? 0 : uint64_t(s.st.st_ino), s.bytes}))
            at.pending(s.other);
        found_[t.name] = std::move(seen);
    }

    void check_socket(size_t i) {
        const spot& at = text_.disks[i];
        const auto path = socket_of(text_.settings.disks[i]);
        if (!path || (at.has("socket") ? !at.good("socket") : !at.good("name")))
            return;
        const spot socket_at = at[at.has("socket") ? "socket" : "name"];
        const sight& s = seen_.at(*path);
        const std::string what = "its socket " + *path;
        if (path->ends_with("/") || (!s.error && S_ISDIR(s.st.st_mode)))
            socket_at.pending(what + " is a directory");
        else if (s.answered && !s.error && !S_ISSOCK(s.st.st_mode))
            socket_at.pending(what +
                              " exists and is not a socket; remove it or choose another path");
        else if (s.folder_error && at.has("socket")) // the run directory is made
            socket_at.pending(what + ": there is no folder for it");
    }

    void check_accounts(size_t i) {
        const spot& at = text_.disks[i];
        const disk_config& d = text_.settings.disks[i];
        if (at.good("socket_user"))
            if (auto known = user_id(d.socket_user); !known)
                at["socket_user"].pending(known.failure().text);
        if (at.good("socket_group"))
            if (auto known = group_id(d.socket_group); !known)
                at["socket_group"].pending(known.failure().text);
    }

    // Does the disk fit on its targets, as far as they are known?
    void check_size(size_t i) {
        const spot& at = text_.disks[i];
        const disk_config& d = text_.settings.disks[i];
        if (!at.good() || d.extents.empty())
            return;
        bool stored = false; // somewhere, that is not type null
        for (size_t e = 0; e < d.extents.size(); e++) {
            const auto t = found_.find(d.extents[e].target);
            if (t == found_.end())
                return;
            stored |= t->second->kind != target_kind::null;
            if (!fits(text_.extent_place(i, e), d, d.extents[e], *t->second))
                return;
        }
        auto planned = plan_volume(d, [&](const std::string& name) {
            const auto t = found_.find(name);
            return t == found_.end() ? nullptr : t->second.get();
        });
        if (planned)
            return;
        std::string why = planned.failure().text;
        if (const std::string prefix = "disk " + d.name + ": "; why.starts_with(prefix))
            why.erase(0, prefix.size());
        for (const char* key : {"size", "chunk_size", "target", "file", "extents"})
            if (at.has(key))
                return void(stored ? at[key].pending(why) : at[key].wrong(why));
    }

    // What a null target cannot hold is in the text; a file may yet grow.
    static bool unfit(const spot& at, const target& t, const std::string& what) {
        return t.kind == target_kind::null ? at.wrong(what) : at.pending(what);
    }

    static bool fits(const spot& at, const disk_config& d, const extent_config& e,
                     const target& t) {
        if (t.read_only && !d.read_only)
            return at.pending(
                t.path + " can be opened for reading only; set read_only = true for " + "the disk");
        if (e.offset < t.bytes && e.length <= t.bytes - e.offset)
            return true;
        return unfit(at, t,
                     "the extent of " + std::to_string(e.length) + " bytes at offset " +
                         std::to_string(e.offset) + " ends beyond target " + t.name + " of " +
                         std::to_string(t.bytes) + " bytes");
    }

    config_text& text_;
    const bool storage_;
    const raw_record served_;
    std::vector<std::string> paths_;
    std::map<std::string, sight> seen_;
    std::map<sight::id, spot> files_; // what each file or device was first named by
    std::map<std::string, std::unique_ptr<target>> found_;
};

} // namespace

std::string why_not_on(int cpu) {
    cpu_set_t allowed;
    CPU_ZERO(&allowed);
    sched_getaffinity(0, sizeof(allowed), &allowed);
    if (cpu >= 0 && cpu < CPU_SETSIZE && CPU_ISSET(size_t(cpu), &allowed))
        return {};
    std::string cpus;
    for (int first = 0; first < CPU_SETSIZE; first++) {
        if (!CPU_ISSET(size_t(first), &allowed))
            continue;
        int last = first;
        while (last + 1 < CPU_SETSIZE && CPU_ISSET(size_t(last + 1), &allowed))
            last++;
        cpus += (cpus.empty() ? "" : ",") + std::to_string(first) +
                (last > first ? "-" + std::to_string(last) : "");
        first = last;
    }
    return "CPU " + std::to_string(cpu) +
           (cpu >= sysconf(_SC_NPROCESSORS_CONF) ? " does not exist" : " is not for this process") +
           " (it may run on " + cpus + ")";
}

void check_machine(config_text& text, look how, std::chrono::milliseconds limit) {
    check_pollers(text);
    machine_check(text, how, limit).check();
}

} // namespace vql
