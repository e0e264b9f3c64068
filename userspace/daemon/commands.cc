// SPDX-License-Identifier: GPL-2.0-only
#include "daemon/commands.h"

#include "base/log.h"
#include "daemon/reload.h"
#include "daemon/validate.h"

#include <utility>

namespace vql {

using nlohmann::json;

commands::commands(event_loop& loop, server& s, state_store& state, config_source from,
                   const config_text& text)
    : loop_(loop), server_(s), state_(state), from_(std::move(from)), reader_(loop) {
    remember(text);
    loop_.every_second([this] {
        if (const auto tick = tick_)
            tick();
    });
}

void commands::remember(const config_text& text) {
    configured_.clear();
    for (const disk_config& d : text.settings.disks)
        configured_.insert(d.name);
}

void commands::add(const json& table, bool transient, completion done) {
    std::vector<target_config> own;
    auto parsed = parse_disk(table, own);
    if (!parsed)
        return done(parsed.failure());
    const std::string name = parsed->name;
    if (configured(name) && !server_.find_entry(name))
        return done(error{"disk " + name +
                          " is in the configuration, and was removed by command; "
                          "bring it back with: vqlane reload"});
    server_.add_disk(
        *parsed, own, server::if_missing::refuse,
        [this, name, table, transient, done = std::move(done)](result<void> ok) {
            if (!ok || transient)
                return done(std::move(ok));
            disk_note note;
            note.added = table;
            const disk_note* const older = state_.find(name);
            const disk_note before = older ? *older : disk_note();
            state_.put(name, note, [this, name, before, done](const result<void>& kept) {
                if (kept)
                    return done({});
                // What nobody would find again is not there now either; nor is what a resize noted
                // of it meanwhile, in place of what was noted before.
                const error why{"disk " + name + ": " + kept.failure().text};
                server_.remove_disk(
                    name, true, [this, name, before, done, why](const result<void>&) {
                        const disk_note* const now = state_.find(name);
                        if (!now || now->toml(name) == before.toml(name))
                            return done(why);
                        std::optional<disk_note> back;
                        if (!before.empty())
                            back = before;
                        state_.put(name, back, [done, why](const result<void>&) { done(why); });
                    });
            });
        });
}

void commands::remove(const std::string& name, bool force, bool transient, completion done) {
    const disk_entry* const e = server_.find_entry(name);
    const disk_note* const before = state_.find(name);
    const bool in_use = e && e->served && e->served->connected() && !force;
    const bool noted = configured(name) ? !(before && before->removed) : before != nullptr;
    if (transient || !noted || in_use || (!e && !before))
        return server_.remove_disk(name, force, std::move(done));
    std::optional<disk_note> note;
    if (configured(name)) {
        note.emplace();
        note->removed = true;
    }
    auto change = std::make_shared<state_store::change>();
    *change = state_.put(name, note, [this, name, force, change, done](const result<void>& kept) {
        if (!kept)
            return done(error{"disk " + name + " is not removed: " + kept.failure().text});
        if (!server_.find_entry(name) && change->before && !change->before->added.is_null())
            return done({}); // only its note was left
        server_.remove_disk(name, force, [this, name, change, done](result<void> ok) {
            if (ok)
                return done({});
            // Somebody else, as a reload that saw the note, is ending it: it is not to come back.
            const disk_entry* const now = server_.find_entry(name);
            if (!now || now->now == disk_entry::phase::closing)
                return done(std::move(ok));
            state_.undo(*change, [done, ok] { done(ok); });
        });
    });
    // What a resize that is under way has noted is not yet so.
    if (const auto resize = resizing_.find(name); resize != resizing_.end())
        change->before = resize->second;
}

void commands::resize(const std::string& name, uint64_t bytes, bool transient, completion done) {
    const disk* const d = server_.find(name);
    const disk_note* const before = state_.find(name);
    const bool kept = !transient && (configured(name) || before);
    if (resizing_.contains(name))
        return done(error{"disk " + name + " is being resized by another command; try again"});
    // What the server is sure to refuse is not written down first.
    if (!kept || !d || bytes < d->layout().bytes || bytes % d->layout().block_bytes)
        return server_.resize_disk(name, bytes, nullptr, std::move(done));
    const auto note = [this, name, before = before ? *before : disk_note(),
                       on = place_of(server_.find_entry(name)->settings, server_.settings())](
                          uint64_t size, completion next) {
        disk_note n = before;
        n.resized = size;
        n.on = on;
        return state_.put(name, n, std::move(next));
    };
    const auto because = [name](const result<void>& ok) {
        return ok ? result<void>()
                  : error{"disk " + name + " is not resized: " + ok.failure().text};
    };
    auto& original = resizing_[name];
    if (before)
        original = *before;
    const auto end = [this, name, done = std::move(done)](result<void> ok) {
        resizing_.erase(name);
        done(std::move(ok));
    };
    // First the size that it has: where that cannot be written down, no file becomes larger. Then
    // the one that it is to have, when storage has it: a daemon that dies before promised nothing.
    auto change = std::make_shared<state_store::change>();
    const auto unless_changed = [this, change](result<void> ok) {
        return !ok || state_.holds(*change)
                   ? std::move(ok)
                   : error{"another command changed what is kept of it meanwhile; try again"};
    };
    const auto keep = [bytes, note, change, because, unless_changed](completion next) {
        const auto go_on = [next, because, unless_changed](result<void> ok) {
            ok = unless_changed(std::move(ok));
            next(ok ? ok
                    : error{because(ok).failure().text +
                            " (its file, if it has one, has grown already)"});
        };
        if (auto ok = unless_changed({}); !ok)
            return go_on(ok);
        // What undo() brings back is still what was before the first.
        change->serial = note(bytes, go_on).serial;
    };
    *change = note(d->layout().bytes, [this, name, bytes, change, keep, end, because,
                                       unless_changed](result<void> ok) {
        ok = unless_changed(std::move(ok));
        if (!ok)
            return end(because(ok));
        server_.resize_disk(name, bytes, keep, [this, change, end](result<void> resized) {
            if (resized)
                return end({});
            state_.undo(*change, [end, resized] { end(resized); });
        });
    });
}

void commands::reload(std::function<void(result<json>)> done) {
    (reloading_ ? next_ : asked_).push_back(std::move(done));
    if (!reloading_)
        start_reload();
}

void commands::start_reload() {
    reloading_ = true;
    using text_ptr = std::shared_ptr<config_text>;
    reader_.run<text_ptr>(
        [from = from_]() -> result<text_ptr> {
            auto text = std::make_shared<config_text>();
            load_config(from.path, from.flags, *text);
            check_machine(*text, look::daemon);
            return text;
        },
        [this](result<text_ptr> read) {
            if (!read)
                return end_reload(read.failure());
            const text_ptr text = *read;
            if (text->found.fatal())
                return end_reload(text->found.joined());
            remember(*text);
            tick_ = apply_config(loop_, server_, state_, text->settings,
                                 [this](json report) { end_reload(std::move(report)); });
        });
}

void commands::end_reload(result<json> outcome) {
    if (!outcome)
        log_error("reload: nothing is changed: " + outcome.failure().text);
    reloading_ = false;
    tick_ = nullptr;
    for (const auto& done : std::exchange(asked_, {}))
        done(outcome);
    asked_ = std::exchange(next_, {});
    if (!asked_.empty())
        start_reload();
}

} // namespace vql
