// SPDX-License-Identifier: GPL-2.0-only
// The server's disks: added, tried until their targets are there, resized, removed.
#include "base/log.h"
#include "daemon/server.h"

#include <algorithm>
#include <utility>

namespace vql {

namespace {

using std::chrono::seconds;
using phase = disk_entry::phase;

// How long a removal by force waits for storage before it is answered.
constexpr seconds patience{3};

// Answer who waits, once.
void tell(disk_entry::completion& who, result<void> outcome) {
    if (const auto told = std::exchange(who, nullptr))
        told(std::move(outcome));
}

} // namespace

disk_entry* server::find_entry(const std::string& name) const {
    for (const auto& e : entries_)
        if (e->settings.name == name)
            return e.get();
    return nullptr;
}

disk* server::find(const std::string& name) const {
    disk_entry* const e = find_entry(name);
    return e && e->now == phase::ready ? e->served.get() : nullptr;
}

std::vector<disk_entry*> server::users_of(const std::string& target) const {
    std::vector<disk_entry*> users;
    for (const auto& e : entries_)
        if (std::any_of(e->settings.extents.begin(), e->settings.extents.end(),
                        [&](const extent_config& x) { return x.target == target; }))
            users.push_back(e.get());
    return users;
}

std::string server::problem(const disk_entry& e) const {
    std::string targets;
    for (const extent_config& x : e.settings.extents) {
        const wanted_target* w = keeper_->find(x.target);
        if (!w && e.now == phase::closing)
            w = keeper_->find_closing(x.target);
        const std::string one = w ? w->problem() : "";
        if (!one.empty() && targets.find(one) == targets.npos)
            targets += (targets.empty() ? "" : "; ") + one;
    }
    if (e.now == phase::closing && e.served && targets.empty()) {
        const auto n = std::chrono::duration_cast<seconds>(disk_entry::clock::now() - e.since);
        return "removed; waits for its guest, or for requests under way, for " +
               std::to_string(n.count()) + " s";
    }
    if (!targets.empty())
        return targets;
    return e.now == phase::ready ? e.served->problem() : e.why;
}

// Why @c cannot be served beside the disks that are there: those that were there before @self, or
// are served. A command is refused for it; a disk that was kept from an earlier command waits, and
// stops no other.
std::string server::conflict(const disk_config& c, const disk_entry* self) const {
    if (c.frontend == frontend_type::vhost_user)
        if (auto path = disk_socket(config_.run_dir, c); !path)
            return path.failure().text;
    bool before = true;
    for (const auto& other : entries_) {
        before = before && other.get() != self;
        if (other.get() != self && other->now != phase::closing && (before || other->served) &&
            disk_serial(other->settings) == disk_serial(c))
            return "its serial number " + disk_serial(c) + " is that of disk " +
                   other->settings.name + "; give it another (serial)";
    }
    return {};
}

void server::add_disk(const disk_config& c, const std::vector<target_config>& own_targets,
                      if_missing missing, completion done) {
    if (const disk_entry* old = find_entry(c.name))
        return done(error{old->now == phase::closing
                              ? "disk " + c.name + " is still being removed: " + problem(*old)
                              : "disk " + c.name + " exists already"});
    if (const std::string why = conflict(c, nullptr); missing == if_missing::refuse && !why.empty())
        return done(error{"disk " + c.name + ": " + why});
    auto e = std::make_unique<disk_entry>();
    e->settings = c;
    if (c.frontend == frontend_type::vhost_user)
        if (auto path = disk_socket(config_.run_dir, c))
            e->socket = *path;
    e->refuse = missing == if_missing::refuse;
    e->asked = std::move(done);
    for (const target_config& own : own_targets)
        keeper_->want(own);
    entries_.push_back(std::move(e));
    try_disk(*entries_.back());
}

void server::target_changed(const std::string& name) {
    std::vector<std::string> users; // a disk may end as we go
    for (const disk_entry* e : users_of(name))
        users.push_back(e->settings.name);
    for (const std::string& user : users)
        if (disk_entry* e = find_entry(user))
            try_disk(*e);
}

// Serve @e if all its targets are there. It may be gone after that.
void server::try_disk(disk_entry& e) {
    if (ending_ || (e.now != phase::opening && e.now != phase::waiting))
        return;
    bool opening = false;
    for (const extent_config& x : e.settings.extents) {
        const wanted_target* w = keeper_->find(x.target);
        if (w && w->now() == wanted_target::phase::waiting)
            return cannot_serve(e, w->problem(), false);
        opening |= w && w->now() == wanted_target::phase::opening;
    }
    if (opening)
        return;
    if (const std::string why = conflict(e.settings, &e); !why.empty())
        return cannot_serve(e, why, true);
    auto d = disk::create(e.settings, e.socket, services());
    if (!d)
        return cannot_serve(e, d.failure().text, true);
    e.served = std::move(*d);
    e.why.clear();
    e.tries = 0;
    e.enter(phase::ready);
    log_info("disk " + e.settings.name + ": listening on " + e.served->address());
    tell(e.asked, {});
}

// @own_try: its targets are there, and the disk itself has to be tried again.
void server::cannot_serve(disk_entry& e, const std::string& why, bool own_try) {
    if (e.refuse && e.asked) {
        e.removal = std::move(e.asked);
        e.enter(phase::closing);
        return end_entry(e, error{why});
    }
    if (std::exchange(e.why, why) != why && own_try) // of a target's trouble the keeper tells
        log_warning("disk " + e.settings.name + ": waiting: " + why);
    if (e.now != phase::waiting)
        e.enter(phase::waiting);
    e.next_try = own_try ? disk_entry::clock::now() + pause_after(e.tries)
                         : disk_entry::clock::time_point::max();
    e.tries += own_try;
    tell(e.asked, {});
}

// Once a second: what is to be tried again, and who has waited long enough.
void server::look_at_disks() {
    const auto now = disk_entry::clock::now();
    std::vector<std::string> again;
    for (const auto& e : entries_) {
        if (e->now == phase::waiting && now >= e->next_try)
            again.push_back(e->settings.name);
        if (e->now == phase::closing && e->forced && now - e->since > patience)
            tell(e->removal, {});
    }
    for (const std::string& name : again)
        if (disk_entry* e = find_entry(name))
            try_disk(*e);
}

void server::interrupt_add(const std::string& name) {
    disk_entry* const e = find_entry(name);
    if (!e || !e->asked)
        return;
    e->asked = nullptr;
    remove_disk(name, true, [](result<void>) {});
}

void server::remove_disk(const std::string& name, bool force, completion done) {
    disk_entry* e = find_entry(name);
    if (!e && !force)
        return done(remove_orphan(name));
    if (!e) {
        auto made = std::make_unique<disk_entry>();
        made->settings.name = name;
        if (auto ok = adopt(*made); !ok)
            return done(std::move(ok));
        entries_.push_back(std::move(made));
        return remove_served(*entries_.back(), force, std::move(done));
    }
    if (e->now == phase::closing)
        return done(error{"disk " + name + " is being removed already: " + problem(*e)});
    tell(e->asked, error{"disk " + name + " was removed meanwhile"});
    if (e->served)
        return remove_served(*e, force, std::move(done));
    remove_unserved(*e, force, std::move(done));
}

void server::remove_served(disk_entry& e, bool force, completion done) {
    const std::string& name = e.settings.name;
    if (e.served->connected() && !force)
        return done(error{"disk " + name +
                          " has a guest connected; detach it there first, or "
                          "remove the disk with --force"});
    const bool adopted = e.now != phase::ready;
    const auto end_resize = [&e, name] {
        if (e.resize)
            tell(*e.resize, error{"disk " + name + " was removed meanwhile"});
    };
    if (force) // then it is not carried on, even if the removal is refused
        end_resize();
    e.removal = std::move(done);
    e.forced = force;
    e.enter(phase::closing);
    e.served->remove(force, [this, &e, adopted, end_resize](result<void> ok) {
        if (!ok && !adopted) {
            e.enter(phase::ready);
            return tell(e.removal, std::move(ok));
        }
        end_resize();
        if (!ok) // not ours after all
            return e.served->close([this, &e, why = ok.failure()] { end_entry(e, why); });
        end_entry(e, {});
    });
}

// A disk that waits. Of a vDPA disk an earlier daemon may have left one in the module, perhaps with
// a guest that waits for it, too.
void server::remove_unserved(disk_entry& e, bool force, completion done) {
    if (e.settings.frontend == frontend_type::vdpa) {
        const std::vector<extent_config> extents = e.settings.extents;
        if (force && adopt(e)) {
            for (const extent_config& x : extents)
                drop_unused(x.target, [] {});
            return remove_served(e, force, std::move(done));
        }
        auto module = services().module();
        auto listed = module ? (*module)->list() : result<std::vector<vql_disk_next>>(error{});
        if (!force && listed && std::any_of(listed->begin(), listed->end(), [&](const auto& d) {
                return e.settings.name == d.name;
            }))
            if (auto ok = remove_orphan(e.settings.name); !ok)
                return done(std::move(ok));
    }
    e.removal = std::move(done);
    e.forced = force;
    e.enter(phase::closing);
    end_entry(e, {});
}

// Close @target if it was opened for disks, and none has it any more.
void server::drop_unused(const std::string& target, std::function<void()> done) {
    const auto users = users_of(target);
    if (!made_for_disk(target) || std::any_of(users.begin(), users.end(), [](const disk_entry* e) {
            return e->now != phase::closing || e->served;
        }))
        return done();
    keeper_->drop(target, std::move(done));
}

// Nothing serves @e any more, or ever did. It is gone, and whoever asked for that is told @outcome,
// when the targets that were opened for it are closed, so that they can be opened again.
void server::end_entry(disk_entry& e, result<void> outcome) {
    e.served.reset();
    auto left = std::make_shared<size_t>(1);
    const auto closed = [this, &e, left, outcome = std::move(outcome)] {
        if (--*left != 0)
            return;
        auto removal = std::move(e.removal);
        const std::string name = e.settings.name;
        std::erase_if(entries_, [&](const auto& p) { return p.get() == &e; });
        check_stopped();
        if (outcome)
            log_info("disk " + name + ": removed");
        tell(removal, outcome);
    };
    std::vector<std::string> targets;
    for (const extent_config& x : e.settings.extents)
        if (std::find(targets.begin(), targets.end(), x.target) == targets.end())
            targets.push_back(x.target);
    for (const std::string& t : targets) {
        ++*left;
        drop_unused(t, closed);
    }
    closed();
}

result<void> server::drop_target(const std::string& name) {
    for (const disk_entry* e : users_of(name))
        if (e->now != phase::closing || e->served)
            return error{"disk " + e->settings.name + " is on it"};
    if (keeper_->find(name))
        keeper_->drop(name, [] {});
    return {};
}

result<void> server::set_access(const disk_config& c) {
    disk_entry* const e = find_entry(c.name);
    if (!e)
        return error{"disk " + c.name + " does not exist"};
    if (e->served)
        if (auto ok = e->served->set_access(c); !ok)
            return ok;
    e->settings.socket_mode = c.socket_mode;
    e->settings.socket_user = c.socket_user;
    e->settings.socket_group = c.socket_group;
    return {};
}

std::vector<std::string> server::take_settings(const config& next) {
    std::vector<std::string> changed;
    if (std::exchange(config_.level, next.level) != next.level) {
        set_log_level(next.level);
        changed.emplace_back("log_level");
    }
    if (std::exchange(config_.promote_iops, next.promote_iops) != next.promote_iops)
        changed.emplace_back("promote_iops");
    if (std::exchange(config_.demote_iops, next.demote_iops) != next.demote_iops)
        changed.emplace_back("demote_iops");
    services_->promote_iops = next.promote_iops;
    services_->demote_iops = next.demote_iops;
    config_.targets = next.targets;
    config_.disks = next.disks;
    return changed;
}

void server::resize_disk(const std::string& name, uint64_t bytes,
                         std::function<void(completion)> keep, completion done) {
    disk_entry* const e = find_entry(name);
    if (!e)
        return done(error{"disk " + name + " does not exist"});
    if (e->now != phase::ready)
        return done(error{"disk " + name + " is not served: " + problem(*e)});
    if (e->resize && *e->resize)
        return done(error{"disk " + name + " is being resized already" +
                          (problem(*e).empty() ? "" : ": " + problem(*e))});
    const auto asked = e->resize = std::make_shared<completion>(std::move(done));
    e->served->resize(bytes, std::move(keep), [name, bytes, asked](result<void> ok) {
        if (ok)
            log_info("disk " + name + ": resized to " + std::to_string(bytes) + " bytes");
        tell(*asked, std::move(ok));
    });
}

} // namespace vql
