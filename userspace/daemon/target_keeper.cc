// SPDX-License-Identifier: GPL-2.0-only
#include "daemon/target_keeper.h"

#include "base/log.h"
#include "daemon/storage_child.h"

#include <algorithm>
#include <utility>

namespace vql {

namespace {

using std::chrono::seconds;
// Shorter waits are not worth a word.
constexpr seconds grace{1};

template <class List>
wanted_target* find_in(const List& list, const std::string& name) {
    for (const auto& w : list)
        if (w->settings().name == name)
            return w.get();
    return nullptr;
}

std::string for_seconds(std::chrono::steady_clock::time_point since) {
    const auto n =
        std::chrono::duration_cast<seconds>(std::chrono::steady_clock::now() - since).count();
    return " for " + std::to_string(n) + " s";
}

// With the size that it was promised: a host that crashed may have kept the promise, and not the
// file's size.
result<std::unique_ptr<target>> open_file(const target_config& c, raw_record* served) {
    try_to_open(c.path, c.read_only);
    auto t = open_uring_target(c.name, c.path, {c.read_only, c.raw, served});
    if (!t || (*t)->block_device || (*t)->bytes >= c.at_least)
        return t;
    log_info("target " + c.name + ": growing to the size that a resize command gave it");
    try_to_grow((*t)->fd.get(), c.at_least);
    auto bytes = grow_target(**t, c.at_least);
    if (!bytes)
        return bytes.failure();
    (*t)->bytes = *bytes;
    return t;
}

} // namespace

std::string wanted_target::title() const {
    const std::string where =
        settings_.type == target_type::uring ? settings_.path
        : settings_.type == target_type::nvme
            ? "nvme:" + settings_.device + "/" + std::to_string(settings_.nsid)
            : "";
    return "target " + settings_.name + (where.empty() ? "" : " (" + where + ")");
}

std::string wanted_target::problem() const {
    switch (now_) {
    case phase::opening: // what was wrong the last time, while it is tried again
        if (why_.empty())
            return title() + ": being opened" + for_seconds(since_);
        return clock::now() - since_ > grace ? why_ + "; being opened again" + for_seconds(since_)
                                             : why_;
    case phase::waiting: return why_;
    case phase::closing: return title() + ": being closed" + for_seconds(since_);
    case phase::ready: break;
    }
    if (!opened_->offline.empty())
        return title() + ": offline: " + opened_->offline;
    if (jobs_ && clock::now() - jobs_since_ > grace)
        return title() + ": checking or growing it," + for_seconds(jobs_since_);
    return {};
}

wanted_target* target_keeper::wanted(const std::string& name) const {
    return find_in(wanted_, name);
}
const wanted_target* target_keeper::find(const std::string& name) const {
    return wanted(name);
}
const wanted_target* target_keeper::find_closing(const std::string& name) const {
    return find_in(closing_, name);
}

size_t target_keeper::first_tries() const {
    return size_t(std::count_if(wanted_.begin(), wanted_.end(), [this](const entry& w) {
        return w->first_try() || find_closing(w->settings_.name);
    }));
}

bool target_keeper::opens_controllers() const {
    return std::any_of(wanted_.begin(), wanted_.end(), [](const entry& w) {
        return w->first_try() && w->settings_.type == target_type::nvme;
    });
}

void target_keeper::want(const target_config& c) {
    if (wanted(c.name))
        return;
    wanted_.push_back(entry(new wanted_target(loop_, c)));
    open(*wanted_.back());
}

result<target*> target_keeper::adopt(const target_config& c, std::unique_ptr<target> t) {
    if (wanted(c.name))
        return error{"target " + c.name + " exists already"};
    wanted_.push_back(entry(new wanted_target(loop_, c)));
    auto ok = publish(*wanted_.back(), std::move(t));
    if (!ok)
        wanted_.pop_back();
    return ok;
}

void target_keeper::open(wanted_target& w) {
    const target_config& c = w.settings_;
    w.enter(wanted_target::phase::opening);
    // Whoever wants a target is not called from within: what is known at once comes by the loop.
    const auto later = [this, &w](std::unique_ptr<target> t, const std::string& refusal) {
        auto held = std::make_shared<std::unique_ptr<target>>(std::move(t));
        loop_.post([this, &w, held, refusal] {
            if (*held)
                opened(w, std::move(*held));
            else
                opened(w, error{refusal});
        });
    };
    if (const wanted_target* old = find_closing(c.name))
        return later({}, old->problem());
    if (wanted_.size() + closing_.size() > VQL_MAX_TARGETS)
        return later({}, "more than " + std::to_string(VQL_MAX_TARGETS) + " targets");
    switch (c.type) {
    case target_type::null:
        return later(make_null_target(c.name, std::max(c.bytes, c.at_least)), {});
    case target_type::nvme:
        return controllers_.use(c.device, [this, &w](const result<controller*>& on) {
            if (!on)
                opened(w, on.failure());
            else if (w.now_ == wanted_target::phase::closing) // dropped meanwhile
                controllers_.unuse((*on)->index(), [this, &w] { closed(w); });
            else
                open_namespace(w, **on);
        });
    case target_type::uring:
        return w.worker_.run<std::unique_ptr<target>>(
            [c, served = served_] { return open_file(c, served.get()); },
            [this, &w](result<std::unique_ptr<target>> t) { opened(w, std::move(t)); });
    }
}

void target_keeper::open_namespace(wanted_target& w, controller& on) {
    w.worker_.run<vql_ns_info>(
        [device = on.device(), nsid = w.settings_.nsid] { return device->ns_info(nsid); },
        [this, &w, &on, changes = on.changes()](const result<vql_ns_info>& ns) {
            auto t = targets_.make_nvme(w.settings_, on, ns, changes);
            if (t)
                opened(w, std::move(t));
            else
                controllers_.unuse(on.index(), [this, &w, why = t.failure()] { opened(w, why); });
        });
}

void target_keeper::look_at_namespaces(const std::function<void(const target&)>& changed) {
    for (const entry& e : wanted_) {
        wanted_target& w = *e;
        if (w.now_ != wanted_target::phase::ready || w.looking_)
            continue;
        target& t = *w.opened_;
        const auto changes = targets_.changes(t);
        if (!changes)
            continue;
        w.looking_ = true;
        w.job_begins();
        w.worker_.run<vql_ns_info>(
            [device = controllers_.at(t.controller).device(), nsid = t.nsid] {
                return device->ns_info(nsid);
            },
            [this, &w, &t, changes = *changes, changed](const result<vql_ns_info>& ns) {
                w.looking_ = false;
                w.jobs_--;
                // Without an answer it is being reset: the next second.
                if (ns && w.now_ == wanted_target::phase::ready && targets_.looked(t, *ns, changes))
                    changed(t);
            });
    }
}

// Storage has answered: @w is there, or the reason why not. Until then @w stays where it is.
void target_keeper::opened(wanted_target& w, result<std::unique_ptr<target>> t) {
    if (w.now_ == wanted_target::phase::closing) // dropped meanwhile
        return t ? close(w, std::move(*t)) : closed(w);
    if (!t)
        return failed(w, t.failure().text);
    if (auto ok = publish(w, std::move(*t)); !ok)
        return failed(w, ok.failure().text);
    if (w.tries_)
        log_info(w.title() + ": is there now");
    w.tries_ = 0;
    if (changed_)
        changed_(w.settings_.name);
}

void target_keeper::failed(wanted_target& w, const std::string& why) {
    const std::string text = "target " + w.settings_.name + ": " + why;
    if (std::exchange(w.why_, text) != text)
        log_warning(text);
    w.enter(wanted_target::phase::waiting);
    w.next_try_ = w.since_ + pause_after(w.tries_++);
    if (changed_)
        changed_(w.settings_.name);
}

result<target*> target_keeper::publish(wanted_target& w, std::unique_ptr<target> t) {
    auto added = targets_.add(std::move(t));
    if (!added)
        return added;
    target& is = **added;
    if (is.kind == target_kind::uring && !is.direct)
        log_info("target " + is.name + ": " + is.path +
                 " does not take O_DIRECT in blocks of 512 bytes; going through the page cache");
    for (auto& p : pollers_)
        p->post([p = p.get(), opened = &is] { p->add_target(*opened); });
    w.opened_ = &is;
    w.why_.clear();
    w.enter(wanted_target::phase::ready);
    return &is;
}

void target_keeper::drop(const std::string& name, std::function<void()> done) {
    const auto at = std::find_if(wanted_.begin(), wanted_.end(),
                                 [&](const entry& w) { return w->settings_.name == name; });
    if (at == wanted_.end())
        return done();
    closing_.push_back(std::move(*at));
    wanted_.erase(at);
    wanted_target& w = *closing_.back();
    const auto was = w.now_;
    w.closed_.push_back(std::move(done));
    w.enter(wanted_target::phase::closing);
    if (was == wanted_target::phase::ready)
        let_go(w, *w.opened_);
    else if (was == wanted_target::phase::waiting)
        closed(w);
    // Being opened: opened() goes on.
}

// The pollers hold the file in their tables: it is closed when the last has let go of it.
void target_keeper::let_go(wanted_target& w, target& t) {
    targets_.retire(t);
    auto left = std::make_shared<size_t>(pollers_.size());
    for (auto& p : pollers_) {
        p->post([this, p = p.get(), &w, &t, left] {
            p->remove_target(t);
            loop_.post([this, &w, &t, left] {
                if (--*left == 0)
                    close(w, targets_.remove(t));
            });
        });
    }
}

void target_keeper::close(wanted_target& w, std::unique_ptr<target> t) {
    const bool nvme = t->kind == target_kind::nvme;
    const uint32_t controller = t->controller;
    const std::string path = t->path;
    auto held = std::make_shared<std::unique_ptr<target>>(std::move(t));
    // Behind what was asked for before: that uses the file, or the controller.
    w.worker_.run<void>(
        [held, served = served_, path, forget = !ending_] {
            held->reset();
            if (forget)
                served->keep([&path](const std::string& other) { return other != path; });
            return result<void>();
        },
        [this, &w, held, nvme, controller](result<void> ok) {
            if (!ok) { // no thread: tick() tries again
                w.ended_ = std::move(*held);
                return;
            }
            if (nvme)
                controllers_.unuse(controller, [this, &w] { closed(w); });
            else
                closed(w);
        });
}

void target_keeper::closed(wanted_target& w) {
    const auto done = std::move(w.closed_);
    std::erase_if(closing_, [&](const entry& e) { return e.get() == &w; });
    for (const auto& told : done)
        told();
}

void target_keeper::grow(target& t, uint64_t bytes, std::function<void(result<uint64_t>)> done) {
    wanted_target* const w = wanted(t.name);
    if (!w || w->opened_ != &t)
        return done(error{"target " + t.name + " is being closed"});
    w->job_begins();
    // @t stays until the job is done, and @w until we are told: it is closed by the same worker.
    std::function<result<uint64_t>()> job = [&t, bytes] {
        if (t.kind == target_kind::uring && !t.block_device)
            try_to_grow(t.fd.get(), bytes);
        return grow_target(t, bytes);
    };
    if (t.kind == target_kind::nvme)
        job = [device = controllers_.at(t.controller).device(), nsid = t.nsid, title = w->title(),
               block_bytes = t.block_bytes]() -> result<uint64_t> {
            auto ns = device->ns_info(nsid);
            if (!ns)
                return ns.failure();
            if (ns->block_bytes != block_bytes)
                return error{title + " is offline"};
            return ns->blocks * ns->block_bytes;
        };
    w->worker_.run<uint64_t>(std::move(job),
                             [w, &t, done = std::move(done)](result<uint64_t> usable) {
                                 w->jobs_--;
                                 if (w->now_ != wanted_target::phase::ready) // @t may be gone
                                     return done(error{w->title() + " is being closed"});
                                 if (usable)
                                     t.bytes = *usable;
                                 done(std::move(usable));
                             });
}

void target_keeper::tick() {
    const auto now = std::chrono::steady_clock::now();
    for (size_t i = 0; i < wanted_.size(); i++)
        if (wanted_[i]->now_ == wanted_target::phase::waiting && now >= wanted_[i]->next_try_)
            open(*wanted_[i]);
    for (const entry& w : closing_)
        if (w->ended_)
            close(*w, std::move(w->ended_));
}

} // namespace vql
