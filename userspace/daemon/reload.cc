// SPDX-License-Identifier: GPL-2.0-only
#include "daemon/reload.h"

#include "base/log.h"

#include <algorithm>
#include <chrono>
#include <deque>
#include <memory>
#include <utility>

namespace vql {

using nlohmann::json;

namespace {

template <class T>
const T* named(const std::vector<T>& all, const std::string& name) {
    const auto found =
        std::find_if(all.begin(), all.end(), [&](const T& x) { return x.name == name; });
    return found == all.end() ? nullptr : &*found;
}

bool contains(const std::vector<std::string>& all, const std::string& name) {
    return std::find(all.begin(), all.end(), name) != all.end();
}

// What only a new disk has: all but its size and who may connect.
disk_config fixed(disk_config d) {
    const disk_config defaults;
    d.bytes = 0;
    d.socket_mode = defaults.socket_mode;
    d.socket_user = defaults.socket_user;
    d.socket_group = defaults.socket_group;
    return d;
}

bool same_access(const disk_config& a, const disk_config& b) {
    return a.mode_of_socket() == b.mode_of_socket() && a.socket_user == b.socket_user &&
           a.socket_group == b.socket_group;
}

bool same_target(target_config a, const target_config& b) {
    a.at_least = b.at_least;
    a.read_only |= b.read_only; // one that can be written serves readers as well
    return a == b;
}

bool uses(const disk_config& d, const std::string& target) {
    return std::any_of(d.extents.begin(), d.extents.end(),
                       [&](const extent_config& e) { return e.target == target; });
}

class planner {
  public:
    planner(const config& now, const config& next, const std::vector<running_disk>& running)
        : now_(now), next_(next), running_(running) {}

    reload_plan plan() {
        for (const running_disk& r : running_)
            if (named(now_.disks, r.settings.name) && !named(next_.disks, r.settings.name))
                end(r, plan_.remove);
        for (const disk_config& d : next_.disks)
            compare(d);
        for (const target_config& t : now_.targets)
            if (const target_config* other = named(next_.targets, t.name);
                !made_for_disk(t.name) && (!other || !same_target(t, *other)))
                change_target(t.name, other != nullptr);
        return std::move(plan_);
    }

  private:
    // @r has to go, for now or for good; not under its guest.
    bool end(const running_disk& r, std::vector<std::string>& list) {
        if (contains(list, r.settings.name))
            return true;
        if (r.connected) {
            refuse(r.settings.name,
                   &list == &plan_.remove
                       ? std::string("is not in the files any more, but has a guest connected; "
                                     "detach that, and "
                                     "reload again")
                       : "differs from the files in " + differences(r.settings) +
                             ", which cannot change while its guest is connected; detach that, and "
                             "reload again");
            return false;
        }
        list.push_back(r.settings.name);
        return true;
    }

    // The keys, of those that only a new disk has, that the files have otherwise.
    std::string differences(const disk_config& is) const {
        const disk_config* const wanted = named(next_.disks, is.name);
        std::string keys;
        const auto compare = [&](const char* key, bool same) {
            if (!same)
                keys += (keys.empty() ? "" : ", ") + std::string(key);
        };
        if (!wanted)
            return "target";
        compare("target, file or extents", is.extents == wanted->extents);
        compare("chunk_size", is.chunk_bytes == wanted->chunk_bytes);
        compare("read_only", is.read_only == wanted->read_only);
        compare("serial", is.serial == wanted->serial);
        compare("format", is.raw == wanted->raw);
        compare("discard", is.discard == wanted->discard);
        compare("queues", is.queues == wanted->queues);
        compare("queue_size", is.queue_size == wanted->queue_size);
        compare("frontend", is.frontend == wanted->frontend);
        compare("lane", is.lane == wanted->lane);
        compare("socket", is.socket == wanted->socket);
        return keys.empty() ? "its target" : keys;
    }

    void compare(const disk_config& d) {
        const auto r = std::find_if(running_.begin(), running_.end(), [&](const running_disk& x) {
            return x.settings.name == d.name;
        });
        if (r == running_.end())
            return plan_.add.push_back(d.name);
        const bool resized = !r->bytes && r->settings.bytes != d.bytes; // not served, so far
        if (resized || fixed(r->settings) != fixed(d))
            return void(end(*r, plan_.replace));
        if (r->bytes && d.bytes > r->bytes)
            plan_.grow.push_back({d.name, d.bytes});
        else if (r->bytes && d.bytes && d.bytes < r->bytes)
            refuse(d.name, "is of " + std::to_string(r->bytes) + " bytes and cannot shrink to " +
                               std::to_string(d.bytes) + " (its guest may have data there)");
        if (!same_access(r->settings, d))
            plan_.access.push_back(d.name);
    }

    // Target @name is gone from the files, or is @another under that name: its disks are made anew.
    void change_target(const std::string& name, bool another) {
        std::vector<const running_disk*> users;
        for (const running_disk& r : running_)
            if (uses(r.settings, name) && !contains(plan_.remove, r.settings.name))
                users.push_back(&r);
        for (const running_disk* r : users) {
            const bool known = named(next_.disks, r->settings.name);
            if (!r->connected && known && (another || contains(plan_.replace, r->settings.name)))
                continue;
            refuse("target " + name,
                   (another ? "is another in the files" : "is not in the files any more") +
                       std::string(", but disk ") + r->settings.name + " uses it" +
                       (r->connected ? ", whose guest is connected" : ""));
            return hold_back(name);
        }
        for (const running_disk* r : users) {
            end(*r, plan_.replace);
            std::erase_if(plan_.grow, [&](const auto& g) { return g.name == r->settings.name; });
            std::erase(plan_.access, r->settings.name);
        }
        plan_.drop.push_back(name);
    }

    // Target @name stays what it was. What is to come on it in the files is on another, and must
    // not find itself on this one.
    void hold_back(const std::string& name) {
        for (const disk_config& d : next_.disks)
            if (uses(d, name) &&
                (std::erase(plan_.add, d.name) || std::erase(plan_.replace, d.name)))
                refuse(d.name, "needs target " + name + " as it is in the files");
    }

    void refuse(const std::string& name, const std::string& why) {
        plan_.refused.push_back({name, why});
    }

    const config &now_, &next_;
    const std::vector<running_disk>& running_;
    reload_plan plan_;
};

std::vector<running_disk> running_disks(const server& s) {
    std::vector<running_disk> all;
    for (const auto& e : s.entries())
        if (e->now != disk_entry::phase::closing)
            all.push_back({e->settings, e->served ? e->served->layout().bytes : 0,
                           e->served && e->served->connected()});
    return all;
}

// What of @note about disk @name still counts beside @files: a disk that a command removed comes
// back, or is not in the files either; and what it was added with by command no longer counts when
// it is in the files.
disk_note what_counts(const std::string& name, const disk_note& note, const config& files) {
    disk_note kept = note;
    kept.removed = false;
    if (const disk_config* d = named(files.disks, name)) {
        kept.added = nullptr;
        if (!kept.on.empty() && kept.on != place_of(*d, files)) // another disk of that name
            kept.resized = 0;
    }
    return kept;
}

// Carries out a plan: one step at a time, each when the one before has ended.
class change : public std::enable_shared_from_this<change> {
  public:
    change(event_loop& loop, server& s, state_store& state, config files, config next,
           std::function<void(json)> done)
        : loop_(loop), server_(s), state_(state), files_(std::move(files)), next_(std::move(next)),
          done_(std::move(done)) {}

    // @noted: the disks whose notes may say other than the files.
    void start(const reload_plan& plan, const disk_notes& noted) {
        for (const char* key :
             {"added", "removed", "replaced", "resized", "changed", "waiting", "refused"})
            report_[key] = json::array();
        for (const auto& r : plan.refused)
            refuse(r.name, r.why);
        for (const auto& [name, note] : noted)
            step(name, "", [this, n = name, was = note.removed](auto done) {
                forget(n, was, std::move(done));
            });
        for (const std::string& name : plan.remove)
            step(name, "removed",
                 [this, name](auto done) { server_.remove_disk(name, false, done); });
        for (const std::string& name : plan.replace)
            step(name, "", [this, name](auto done) { server_.remove_disk(name, false, done); });
        for (const std::string& name : plan.drop)
            step("target " + name, "", [this, name](auto done) {
                auto ok = server_.drop_target(name);
                (ok ? dropped_ : kept_).push_back(name);
                done(std::move(ok));
            });
        for (const std::string& name : plan.replace)
            step(name, "replaced", [this, name](auto done) { add(name, done); });
        for (const std::string& name : plan.add)
            step(name, "added", [this, name](auto done) { add(name, done); });
        for (const auto& g : plan.grow)
            step(g.name, "resized",
                 [this, g](auto done) { server_.resize_disk(g.name, g.bytes, nullptr, done); });
        for (const std::string& name : plan.access)
            step(name, "changed",
                 [this, name](auto done) { done(server_.set_access(*named(next_.disks, name))); });
        go_on();
    }

    // Once a second: storage that hangs does not keep what comes after it.
    void tick() {
        if (!under_way_ || clock::now() - since_ < patience)
            return;
        under_way_ = 0;
        refuse(name_, "has not ended yet, and goes on by itself (see: vqlane disk list)");
        go_on();
    }

  private:
    using clock = std::chrono::steady_clock;
    static constexpr std::chrono::seconds patience{10};
    using completion = std::function<void(result<void>)>;
    struct one_step {
        std::string name;
        const char* as; // in the report, or empty
        std::function<void(completion)> run;
    };

    void step(const std::string& name, const char* as, std::function<void(completion)> run) {
        steps_.push_back({name, as, std::move(run)});
    }

    // What is noted about disk @name by now, without what no longer counts. A removal that is newer
    // than the plan does.
    void forget(const std::string& name, bool was_removed, completion done) {
        const disk_note* const note = state_.find(name);
        if (!note || (note->removed && !was_removed))
            return done({});
        const disk_note kept = what_counts(name, *note, files_);
        std::optional<disk_note> next;
        if (!kept.empty())
            next = kept;
        state_.put(name, next, std::move(done));
    }

    void add(const std::string& name, completion done) {
        if (server_.find_entry(name)) // its removal was refused
            return done(error{"not replaced: it could not be removed"});
        const disk_config& d = *named(next_.disks, name);
        for (const std::string& kept : kept_)
            if (uses(d, kept))
                return done(error{"needs target " + kept + " as it is in the files"});
        std::vector<target_config> targets;
        for (const target_config& t : next_.targets)
            if (uses(d, t.name))
                targets.push_back(t);
        server_.add_disk(d, targets, server::if_missing::wait, std::move(done));
    }

    void go_on() {
        if (steps_.empty())
            return end();
        const one_step now = std::move(steps_.front());
        steps_.pop_front();
        name_ = now.name;
        since_ = clock::now();
        under_way_ = ++last_;
        now.run([self = shared_from_this(), now, number = last_](const result<void>& ok) {
            if (number != self->under_way_) // it was given up
                return;
            self->under_way_ = 0;
            if (!ok)
                self->refuse(now.name, ok.failure().text);
            else if (*now.as)
                self->report_[now.as].push_back(now.name);
            if (const disk_entry* e = self->server_.find_entry(now.name);
                ok && e && e->now == disk_entry::phase::waiting)
                self->report_["waiting"].push_back(
                    {{"name", now.name}, {"why", self->server_.problem(*e)}});
            self->loop_.post([self] { self->go_on(); });
        });
    }

    void refuse(const std::string& name, const std::string& why) {
        report_["refused"].push_back({{"name", name}, {"why", why}});
    }

    // What is served now: as the files have it, but for what was refused. The next reload finds
    // that in them, or not, again.
    config settings() const {
        config c = next_;
        for (const disk_config& d : server_.settings().disks)
            if (!named(c.disks, d.name) && server_.find_entry(d.name))
                c.disks.push_back(d);
        for (const target_config& old : server_.settings().targets) {
            if (made_for_disk(old.name) || contains(dropped_, old.name))
                continue;
            const auto t = std::find_if(c.targets.begin(), c.targets.end(),
                                        [&](const target_config& x) { return x.name == old.name; });
            if (t == c.targets.end())
                c.targets.push_back(old);
            else if (!same_target(*t, old))
                *t = old;
        }
        return c;
    }

    void end() {
        for (const std::string& key : server_.take_settings(settings()))
            report_["changed"].push_back("daemon." + key);
        for (const std::string& key : need_restart(server_.settings(), next_))
            refuse("daemon." + key, "takes effect when vqlaned is started again");
        for (const auto& part : report_.items())
            for (const json& one : part.value()) {
                const std::string name =
                    one.is_object() ? one["name"].get<std::string>() : one.get<std::string>();
                if (one.is_object())
                    log_warning("reload: " + name +
                                (part.key() == "waiting" ? ": waiting: " : ": ") +
                                one["why"].get<std::string>());
                else
                    log_info("reload: " + name + " " + part.key());
            }
        log_info("reload: done");
        done_(std::move(report_));
    }

    event_loop& loop_;
    server& server_;
    state_store& state_;
    config files_, next_; // … with what is noted
    std::function<void(json)> done_;
    std::deque<one_step> steps_;
    std::vector<std::string> dropped_, kept_; // targets
    std::string name_;                        // of the step that is under way
    clock::time_point since_;                 // … and since when
    uint64_t under_way_ = 0, last_ = 0;       // its number, and that of the last one; 0: none is
    json report_ = json::object();
};

} // namespace

reload_plan plan_reload(const config& now, const config& next,
                        const std::vector<running_disk>& running) {
    return planner(now, next, running).plan();
}

std::vector<std::string> need_restart(const config& now, const config& next) {
    std::vector<std::string> keys;
    const auto compare = [&](const char* key, bool same) {
        if (!same)
            keys.push_back(key);
    };
    compare("run_dir", now.run_dir == next.run_dir);
    compare("state_dir", now.state_dir == next.state_dir);
    compare("bpf_dir", now.bpf_dir == next.bpf_dir);
    compare("bpf", now.bpf == next.bpf);
    // One that was left out is known by now.
    compare("pollers", next.pollers.empty() || now.pollers == next.pollers);
    compare("spin_us", now.spin_us == next.spin_us);
    compare("spin", now.spin_always == next.spin_always);
    compare("register_memory", now.register_memory == next.register_memory);
    compare("allow_untranslated_dma", now.allow_untranslated_dma == next.allow_untranslated_dma);
    return keys;
}

std::function<void()> apply_config(event_loop& loop, server& s, state_store& state,
                                   const config& files, std::function<void(json)> done) {
    disk_notes noted, notes;
    for (const auto& [name, note] : state.notes()) {
        const disk_note kept = what_counts(name, note, files);
        if (!kept.empty())
            notes.emplace(name, kept);
        if (kept.empty() || (kept.added.is_null() && !note.added.is_null()))
            noted.emplace(name, note);
    }
    config next = files;
    std::vector<std::string> said;
    apply_notes(notes, next, said);
    for (const std::string& line : said)
        log_info(line);
    const reload_plan plan = plan_reload(s.settings(), next, running_disks(s));
    // Of a disk that stays as it was, what was noted stays as well.
    for (const auto& r : plan.refused)
        if (const disk_note* note = state.find(r.name); note && !note->removed)
            noted.erase(r.name);
    auto c = std::make_shared<change>(loop, s, state, files, std::move(next), std::move(done));
    c->start(plan, noted);
    return [c] { c->tick(); };
}

} // namespace vql
