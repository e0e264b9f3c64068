// SPDX-License-Identifier: GPL-2.0-only
#include "daemon/targets.h"

#include "base/log.h"

#include <algorithm>
#include <vqlane/io.h>

namespace vql {

result<target*> target_set::open(const target_config& c) {
    if (find(c.name))
        return error{"target " + c.name + " exists already"};
    const auto free = std::find_if(table_->begin(), table_->end(), [](const auto& p) {
        return p.load(std::memory_order_relaxed) == nullptr;
    });
    if (free == table_->end())
        return error{"more than " + std::to_string(VQL_MAX_TARGETS) + " targets"};

    std::unique_ptr<target> t;
    if (c.type == target_type::null) {
        t = make_null_target(c.name, c.bytes);
    } else {
        auto opened = open_uring_target(c.name, c.path);
        if (!opened)
            return error{"target " + c.name + ": " + opened.failure().text};
        t = std::move(*opened);
    }
    t->id = uint32_t(free - table_->begin());
    reported_[t->id] = 0;
    free->store(t.get(), std::memory_order_release);
    targets_.push_back(std::move(t));
    return targets_.back().get();
}

target* target_set::find(const std::string& name) const {
    for (const auto& t : targets_)
        if (t->name == name)
            return t.get();
    return nullptr;
}

void target_set::close(target& t) {
    (*table_)[t.id].store(nullptr, std::memory_order_release);
    std::erase_if(targets_, [&](const auto& p) { return p.get() == &t; });
}

bool target_set::claimed(const target& t) const {
    return std::any_of(claims_.begin(), claims_.end(),
                       [&](const claim& c) { return c.where == &t; });
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
