-- Prepares a Markdown page for pandoc's manual page writer. Tables become definition lists, which a terminal shows at any width: those
-- of keys have the columns key, values, default and meaning; others are listed by their first column.

local function blocks(cell)
  return pandoc.utils.blocks_to_inlines(cell.contents)
end

local function is_empty(inlines)
  return #inlines == 0
end

function Table(tab)
  local head = pandoc.utils.stringify(tab.head.rows[1].cells[1].contents)
  local items = {}
  for _, body in ipairs(tab.bodies) do
    for _, row in ipairs(body.body) do
      local cells = {}
      for i, cell in ipairs(row.cells) do cells[i] = blocks(cell) end
      local text = pandoc.Inlines({})
      if head == "key" then
        text:extend({ pandoc.Str("Values: ") }); text:extend(cells[2])
        if is_empty(cells[3]) then
          text:extend({ pandoc.Str("; no default.") })
        else
          text:extend({ pandoc.Str("; default: ") }); text:extend(cells[3]); text:extend({ pandoc.Str(".") })
        end
        items[#items + 1] = { cells[1], { { pandoc.Plain(text), pandoc.Para(cells[4]) } } }
      else
        for i = 2, #cells do
          if not is_empty(cells[i]) then
            if #text > 0 then text:extend({ pandoc.Str("; ") }) end
            text:extend(cells[i])
          end
        end
        items[#items + 1] = { cells[1], { { pandoc.Plain(text) } } }
      end
    end
  end
  return pandoc.DefinitionList(items)
end

-- A manual page has no files beside it: a link to one becomes the path of the installed file.
function Link(link)
  local target = link.target
  if target:find("^#") or target:find("://", 1, true) then return link.content end
  local path = target:find("^%.%./") and target:sub(4) or "docs/" .. target
  return pandoc.Strong(pandoc.Str("/usr/share/doc/portsentry-nft/" .. path:gsub("#.*", "")))
end

-- Bold instead of a typewriter font, which a terminal does not show.
function Code(code)
  return pandoc.Strong(pandoc.Str(code.text))
end

-- Without a font that mandoc does not know.
function CodeBlock(block)
  local text = block.text:gsub("\\", "\\e"):gsub("%-", "\\-"):gsub("\n([.'])", "\n\\&%1"):gsub("^([.'])", "\\&%1")
  return pandoc.RawBlock("man", ".IP\n.nf\n" .. text .. "\n.fi")
end

-- A page that is also read elsewhere has its title as first heading, and its sections one level below.
function Pandoc(doc)
  local titled = not doc.blocks[1].content or pandoc.utils.stringify(doc.blocks[1]) ~= "NAME"
  local out = pandoc.Blocks({})
  local page = doc.meta.title and pandoc.utils.stringify(doc.meta.title):lower() or ""
  for i, block in ipairs(doc.blocks) do
    if block.t == "Header" and titled then
      if block.level == 1 then
        out:insert(pandoc.Header(1, "NAME"))
        out:insert(pandoc.Plain({ pandoc.Str(page .. " - "), pandoc.Str(pandoc.utils.stringify(doc.meta.description)) }))
        block.content = { pandoc.Str("DESCRIPTION") }
      else
        block.level = block.level - 1
        if block.level == 1 then block.content = { pandoc.Str(pandoc.utils.stringify(block):upper()) } end
      end
    end
    local before = out[#out]
    if before and before.t == "Header" then
      if block.t == "Para" then block = pandoc.Plain(block.content) end
      if block.t == "LineBlock" then
        local text = pandoc.Inlines({})
        for number, line in ipairs(block.content) do
          if number > 1 then text:insert(pandoc.LineBreak()) end
          text:extend(line)
        end
        block = pandoc.Plain(text)
      end
    end
    out:insert(block)
  end
  doc.blocks = out
  return doc
end
