// SPDX-License-Identifier: GPL-2.0-only
#include "daemon/targets.h"

#include "base/log.h"
#include "daemon/controllers.h"

#include <algorithm>
#include <utility>
#include <vqlane/io.h>

namespace vql {

result<target*> target_set::add(std::unique_ptr<target> t) {
    if (find(t->name))
        return error{"target " + t->name + " exists already"};
    const auto free = std::find_if(table_->begin(), table_->end(), [&](const auto& p) {
        return std::none_of(targets_.begin(), targets_.end(),
                            [&](const auto& o) { return o->id == uint32_t(&p - table_->begin()); });
    });
    if (free == table_->end())
        return error{"more than " + std::to_string(VQL_MAX_TARGETS) + " targets"};
    t->id = uint32_t(free - table_->begin());
    reported_[t->id] = 0;
    free->store(t.get(), std::memory_order_release);
    targets_.push_back(std::move(t));
    return targets_.back().get();
}

result<std::unique_ptr<target>> target_set::make_nvme(const target_config& c, const controller& on,
                                                      const result<vql_ns_info>& ns,
                                                      uint32_t changes) const {
    const auto refuse = [&](const std::string& why) {
        return error{"controller " + c.device + " namespace " + std::to_string(c.nsid) + ": " +
                     why};
    };
    for (const auto& t : targets_)
        if (t->kind == target_kind::nvme && t->controller == on.index() && t->nsid == c.nsid)
            return refuse("is target " + t->name + " already");
    if (!ns)
        return refuse(ns.failure().text);
    if (!ns->blocks)
        return refuse("cannot be served: " + std::string(ns->reason));
    auto t = std::make_unique<target>();
    t->name = c.name;
    t->kind = target_kind::nvme;
    t->path = "nvme:" + c.device + "/" + std::to_string(c.nsid);
    t->controller = on.index();
    t->nsid = c.nsid;
    t->changes = changes;
    t->block_bytes = ns->block_bytes;
    t->bytes = ns->blocks * ns->block_bytes;
    t->boundary_blocks = ns->boundary_blocks;
    t->discard = on.info().oncs & 1u << 2;
    return t;
}

target* target_set::find(const std::string& name) const {
    for (const auto& t : targets_)
        if (t->name == name &&
            std::find(retired_.begin(), retired_.end(), t.get()) == retired_.end())
            return t.get();
    return nullptr;
}

std::unique_ptr<target> target_set::remove(target& t) {
    std::erase(retired_, &t);
    (*table_)[t.id].store(nullptr, std::memory_order_release);
    const auto at = std::find_if(targets_.begin(), targets_.end(),
                                 [&](const auto& p) { return p.get() == &t; });
    auto removed = std::move(*at);
    targets_.erase(at);
    return removed;
}

namespace {

// Why @ns is not what @t was opened as; empty: it is.
std::string why_other(const target& t, const vql_ns_info& ns) {
    if (ns.block_bytes == t.block_bytes)
        return {};
    if (!ns.blocks)
        return ns.reason;
    return "it has blocks of " + std::to_string(ns.block_bytes) + " bytes now, not of " +
           std::to_string(t.block_bytes);
}

} // namespace

std::optional<uint32_t> target_set::changes(const target& t) const {
    if (t.kind != target_kind::nvme)
        return std::nullopt;
    const uint32_t now = controllers_->at(t.controller).changes();
    return t.changes == now ? std::nullopt : std::optional(now);
}

bool target_set::looked(target& t, const vql_ns_info& ns, uint32_t changes) {
    t.changes = changes;
    const std::string was = std::exchange(t.offline, why_other(t, ns));
    if (t.offline == was)
        return false;
    const std::string what = "target " + t.name + " (" + t.path + ")";
    if (t.offline.empty())
        log_info(what + ": online again");
    else
        log_error(what + ": offline: I/O fails until it is restored: " + t.offline);
    if (was.empty() == t.offline.empty())
        return false;
    // Pollers refuse what has no target. What they have submitted is the drive's already.
    (*table_)[t.id].store(t.offline.empty() ? &t : nullptr, std::memory_order_release);
    return true;
}

result<void> target_set::add_claims(const std::vector<claim>& claims) {
    std::vector<claim> all = claims_;
    for (const claim& c : claims) {
        for (const claim& other : all) {
            if (c.where != other.where || (c.read_only && other.read_only) ||
                c.offset >= other.offset + other.bytes || other.offset >= c.offset + c.bytes)
                continue;
            return error{"disk " + c.disk + ": its part of target " + c.where->name +
                         " at offset " + std::to_string(c.offset) + " overlaps one of disk " +
                         other.disk + " at offset " + std::to_string(other.offset)};
        }
        all.push_back(c);
    }
    claims_ = std::move(all);
    return {};
}

void target_set::remove_claims(const std::string& disk) {
    std::erase_if(claims_, [&](const claim& c) { return c.disk == disk; });
}

void target_set::report_errors() {
    static constexpr std::array names = {"read", "write", "flush", "discard", "write zeroes"};
    for (const auto& t : targets_) {
        const uint64_t errors = t->errors.load(std::memory_order_relaxed);
        if (errors == reported_[t->id])
            continue;
        const size_t op = t->last_error_op.load(std::memory_order_relaxed);
        log_error("target " + t->name + (t->path.empty() ? "" : " (" + t->path + ")") + ": " +
                  std::to_string(errors - reported_[t->id]) + " failed, the last a " +
                  (op < names.size() ? names[op] : "request") + " at byte " +
                  std::to_string(t->last_error_offset.load(std::memory_order_relaxed)) + ": " +
                  std::strerror(t->last_errno.load(std::memory_order_relaxed)));
        reported_[t->id] = errors;
    }
}

} // namespace vql
