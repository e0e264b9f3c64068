// SPDX-License-Identifier: GPL-2.0-only
#include "cli/device_boot.h"

#include "base/fd.h"

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstdio>
#include <fcntl.h>
#include <filesystem>
#include <fstream>
#include <sstream>

namespace vql {

namespace {

constexpr const char* rules_head =
    "# Drives that vqlane device bind --persist gives to the vqlane module at boot.\n"
    "# vqlane device unbind takes a drive out; edited lines are kept as they are.\n";
constexpr const char* modules_text = "# For the drives in udev/rules.d/60-vqlane.rules\nvqlane\n";

std::string rules_path(const host_tree& host) {
    return host.etc + "/udev/rules.d/60-vqlane.rules";
}
std::string modules_path(const host_tree& host) {
    return host.etc + "/modules-load.d/vqlane.conf";
}

std::string read_file(const std::string& path) {
    std::ifstream file(path);
    std::ostringstream text;
    text << file.rdbuf();
    return text.str();
}

bool is_rule_for(const std::string& line, const std::string& bdf) {
    return line.compare(0, 1, "#") != 0 &&
           line.find("KERNEL==\"" + bdf + "\"") != std::string::npos;
}

// A drive says what its serial number is, and a rule is no place for all that it may say.
std::string plain(std::string serial) {
    for (char& c : serial)
        if (!std::isalnum(static_cast<unsigned char>(c)) && c != '-' && c != '.')
            c = '_';
    return serial;
}

// The file is the old one or the new one, also after a crash.
result<void> replace_file(const std::string& path, const std::string& text) {
    const std::string fresh = path + ".new";
    std::error_code failed;

    std::filesystem::create_directories(std::filesystem::path(path).parent_path(), failed);
    const unique_fd fd(
        ::open(fresh.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644));
    if (!fd)
        return errno_error("creating " + fresh, errno);
    if (::write(fd.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size()) ||
        ::fsync(fd.get()) || ::rename(fresh.c_str(), path.c_str())) {
        const error why = errno_error("writing " + path, errno);
        ::unlink(fresh.c_str());
        return why;
    }
    const unique_fd folder(::open(std::filesystem::path(path).parent_path().c_str(),
                                  O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!folder || ::fsync(folder.get()))
        return errno_error("writing the folder of " + path, errno);
    return {};
}

result<void> remove_file(const std::string& path) {
    if (::unlink(path.c_str()) && errno != ENOENT)
        return errno_error("removing " + path, errno);
    return {};
}

// The lines of the rules but those for @bdf, and whether there is another rule among them.
std::string rules_without(const host_tree& host, const std::string& bdf, bool& others) {
    std::istringstream lines(read_file(rules_path(host)));
    std::string kept;

    others = false;
    for (std::string line; std::getline(lines, line);) {
        if (is_rule_for(line, bdf))
            continue;
        kept += line + "\n";
        others |= !line.empty() && line[0] != '#';
    }
    return kept;
}

} // namespace

bool is_persistent(const host_tree& host, const std::string& bdf) {
    std::ifstream rules(rules_path(host));
    for (std::string line; std::getline(rules, line);)
        if (is_rule_for(line, bdf))
            return true;
    return false;
}

result<void> persist_device(const host_tree& host, const std::string& name,
                            const std::string& program, const progress& say) {
    auto devices = list_devices(host);
    if (!devices)
        return devices.failure();
    auto found = find_device(host, *devices, name);
    if (!found)
        return found.failure();
    const nvme_device& device = **found;
    const std::string vendor = read_attribute(host.function(device.bdf) + "/vendor");
    const std::string type = read_attribute(host.function(device.bdf) + "/device");
    bool others = false;

    if (program.empty() || program[0] != '/' ||
        program.find_first_of("\"\\ \t\n$%'") != program.npos)
        return error{"a udev rule cannot run \"" + program +
                     "\": install vqlane where its path "
                     "has no blanks or quotes"};
    if (vendor.empty() || type.empty())
        return error{host.function(device.bdf) + " tells no vendor and device"};
    std::string rules = rules_without(host, device.bdf, others);
    if (rules.empty())
        rules = rules_head;
    rules += "ACTION==\"add\", SUBSYSTEM==\"pci\", KERNEL==\"" + device.bdf +
             "\", ATTR{vendor}==\"" + vendor + "\", ATTR{device}==\"" + type +
             "\", ATTR{driver_override}=\"vqlane\", RUN{builtin}+=\"kmod load vqlane\", RUN+=\"" +
             program + " device restore " + device.bdf +
             (device.serial.empty() ? "" : " --serial " + plain(device.serial)) + "\"\n";
    // The module first: a rule that finds none would leave the drive without a driver.
    if (auto done = replace_file(modules_path(host), modules_text); !done)
        return done;
    if (auto done = replace_file(rules_path(host), rules); !done)
        return done;
    say(device.bdf + ": will be bound at boot, " + rules_path(host));
    return {};
}

result<void> forget_device(const host_tree& host, const std::string& bdf, const progress& say) {
    bool others = false;

    if (!is_persistent(host, bdf))
        return {};
    const std::string rules = rules_without(host, bdf, others);
    // The rule first, for the same reason.
    auto done = others ? replace_file(rules_path(host), rules) : remove_file(rules_path(host));
    if (done && !others && read_file(modules_path(host)) == modules_text)
        done = remove_file(modules_path(host));
    if (done)
        say(bdf + ": will not be bound at boot any more");
    return done;
}

result<void> restore_device(const host_tree& host, const std::string& bdf,
                            const std::string& serial, const progress& say) {
    const auto serial_of = [&](std::string& now) -> result<void> {
        auto devices = list_devices(host);
        if (!devices)
            return devices.failure();
        auto found = find_device(host, *devices, bdf);
        if (!found)
            return found.failure();
        now = plain((*found)->serial);
        return {};
    };
    const auto differs = [&](const std::string& now) {
        return !serial.empty() && !now.empty() && now != serial;
    };
    const auto refusal = [&](const std::string& now) {
        return error{bdf + " is another drive now (serial number " + now + ", not " + serial +
                     "): it stays with the kernel. vqlane device bind --persist the right one, and "
                     "vqlane device unbind " +
                     bdf + " forgets this one"};
    };
    std::string now;

    // Known where the nvme driver was first, as one in the initramfs is.
    if (auto done = serial_of(now); !done)
        return done;
    if (differs(now)) {
        if (auto done = release_override(host, bdf); !done)
            return done;
        return refusal(now);
    }
    if (auto done = bind_device(host, bdf, false, say); !done) {
        if (auto released = release_override(host, bdf); !released)
            return error{done.failure().text + "\n" + released.failure().text};
        return done;
    }
    if (auto done = serial_of(now); !done)
        return done;
    if (!differs(now))
        return {};
    if (auto done = give_back(host, bdf, say); !done)
        return done;
    return refusal(now);
}

} // namespace vql
