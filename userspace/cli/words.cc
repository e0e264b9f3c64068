// SPDX-License-Identifier: GPL-2.0-only
#include "cli/words.h"

#include "base/nearest.h"

#include <deque>
#include <string_view>
#include <vector>

#include <CLI/CLI.hpp>

namespace vql {

namespace {

// Options that may stand behind this subcommand: its own, those of its groups, and its parents', to
// which it falls through.
std::vector<const CLI::Option*> options_of(const CLI::App& app) {
    std::vector<const CLI::Option*> all;
    for (const CLI::App* a = &app; a; a = a->get_parent()) {
        for (const CLI::Option* o : a->get_options())
            all.push_back(o);
        for (const CLI::App* group : a->get_subcommands({}))
            if (group->get_name().empty())
                for (const CLI::Option* o : group->get_options())
                    all.push_back(o);
    }
    return all;
}

std::vector<const CLI::App*> commands_of(const CLI::App& app) {
    std::vector<const CLI::App*> all;
    for (const CLI::App* c : app.get_subcommands({}))
        if (!c->get_name().empty())
            all.push_back(c);
    return all;
}

std::string full_name(const CLI::App& app) {
    return app.get_parent() ? full_name(*app.get_parent()) + " " + app.get_name() : app.get_name();
}

const CLI::Option* option_named(const CLI::App& app, const std::string& name) {
    for (const CLI::Option* o : options_of(app))
        if (o->check_name(name))
            return o;
    return nullptr;
}

std::string unknown_option(const CLI::App& app, const std::string& name) {
    std::deque<std::string> names; // that views stay valid
    std::vector<std::string_view> known;
    for (const CLI::Option* o : options_of(app))
        for (const std::string& n : o->get_lnames())
            known.push_back(names.emplace_back("--" + n));
    return "\"" + name + "\" is no option of \"" + full_name(app) + "\"" +
           did_you_mean(name, known);
}

std::string unknown_command(const CLI::App& app, const std::string& name) {
    std::vector<std::string_view> known;
    for (const CLI::App* c : commands_of(app))
        known.push_back(c->get_name());
    std::string text = "\"" + name + "\" is no command of \"" + full_name(app) + "\"" +
                       did_you_mean(name, known) + " (it has ";
    for (size_t i = 0; i < known.size(); i++)
        text += (i ? ", " : "") + std::string(known[i]);
    return text + ")";
}

} // namespace

std::string unknown_word(const CLI::App& app, int argc, const char* const* argv) {
    const CLI::App* at = &app;
    for (int i = 1; i < argc; i++) {
        const std::string word = argv[i];
        if (word == "--")
            break;
        if (word.size() > 1 && word[0] == '-') {
            const std::string name = word.substr(0, word.find('='));
            const CLI::Option* o = option_named(*at, name);
            if (!o && word.starts_with("--"))
                return unknown_option(*at, name);
            if (o && name == word && o->get_expected_min() > 0)
                i++; // its value
            continue;
        }
        const auto commands = commands_of(*at);
        if (commands.empty())
            continue; // an argument
        const CLI::App* next = nullptr;
        for (const CLI::App* c : commands)
            if (c->check_name(word))
                next = c;
        if (!next)
            return unknown_command(*at, word);
        at = next;
    }
    return {};
}

} // namespace vql
