"""Every sentence of the page, in Chinese and English."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

LANGUAGES = {"zh": "中文", "en": "English"}

TEXTS: dict[str, tuple[str, str]] = {
    # frame
    "title": ("visglm · 看图说话", "visglm · talk about pictures"),
    "talk": ("对话", "Talk"),
    "library": ("资料库", "Library"),
    "compare": ("对比", "Compare"),
    "teach": ("教学", "Teach"),
    "page_language": ("页面语言", "Language of the page"),
    "prompt_language": ("提示语言", "Language of the prompt"),
    "prompt_language_help": (
        "提示框架“问：…答：”或“Q:… A:”的语言。自动：由第一个问题决定。",
        "Whether the model reads “问：… 答：” or “Q:… A:”. Automatic: as the first question.",
    ),
    "auto": ("自动", "Automatic"),
    # models
    "model": ("模型", "Model"),
    "model_help": (
        "启动时用 --model 添加更多模型或适配器。",
        "Add models and adapters with --model when you start the page.",
    ),
    "quantize": ("量化", "Quantization"),
    "quantize_help": (
        "用更少的比特存储权重：省内存，答案可能略有不同。",
        "Weights in fewer bits: less memory, and answers may differ a little.",
    ),
    "none": ("不量化", "None"),
    "loading": (
        "正在加载 {model}：读取权重，检查每个张量…",
        "Loading {model}: reading its weights, checking every tensor…",
    ),
    "load_failed": ("这个模型加载不了。", "This model cannot be loaded."),
    # settings
    "settings": ("生成设置", "How it answers"),
    "temperature": ("温度", "Temperature"),
    "temperature_help": (
        "0：总选最可能的词。越大越随意。",
        "0 takes the likeliest token every time; above 0 samples, flatter the higher.",
    ),
    "top_p": ("Top-p", "Top-p"),
    "top_p_help": (
        "只在累计概率达到该值的最可能的词里抽样。温度大于 0 时有效。",
        "Sample among the likeliest tokens that hold this share of the probability. Counts above temperature 0.",
    ),
    "top_k": ("Top-k", "Top-k"),
    "top_k_help": (
        "只在这么多个最可能的词里抽样；0 为全部。温度大于 0 时有效。",
        "Sample among this many likeliest tokens; 0 for all. Counts above temperature 0.",
    ),
    "repetition_penalty": ("重复惩罚", "Repetition penalty"),
    "repetition_penalty_help": (
        "大于 1：已出现过的词更不容易再出现。",
        "Above 1 makes tokens that occurred before less likely.",
    ),
    "max_new_tokens": ("最长回答", "Longest answer"),
    "max_new_tokens_help": (
        "以词元计；0：上下文还剩多少就用多少，最多 512。",
        "In tokens; 0 for what the context leaves, at most 512.",
    ),
    "seed": ("随机种子", "Seed"),
    "seed_help": ("让抽样可以重现；留空则每次不同。", "Makes sampling repeatable; empty for a new draw each time."),
    "heat": ("它看了哪里", "What it looked at"),
    "heat_help": (
        "把答案归因到图像上：越亮的地方对答案贡献越大。",
        "Traces the answer back to the picture: the brighter a place, the more it did for the answer.",
    ),
    "heat_caption": ("它看了哪里", "What it looked at"),
    "heat_failed": ("画不出热图：{problem}", "No heat map: {problem}"),
    "timings": ("显示用时", "Show timings"),
    # the empty state
    "hero": ("给我看一张图片", "Show me a picture"),
    "hero_more": (
        "拖进来、粘贴、拍一张，或者从下面挑一张。然后用中文或英文问我。",
        "Drop it, paste it, photograph it, or take one of these. Then ask about it in Chinese or English.",
    ),
    "hero_local": ("图片只留在运行本页的机器上。", "Pictures stay on the machine that runs this page."),
    "gallery": ("示例图片", "Samples"),
    # pictures
    "add_picture": ("添加图片", "Add a picture"),
    "upload": ("上传", "Upload"),
    "choose_file": ("选择文件", "Choose files"),
    "file_limit": ("或拖到这里，每个至多 32 MB", "or drop them here, up to 32 MB each"),
    "more_pictures": ("图片", "Pictures"),
    "picture": ("图片", "Picture"),
    "picture_sample": ("示例图片：{name}", "Sample: {name}"),
    "reason_full": (
        "放不下更多图片了。移除几张，或开始新的对话。",
        "There is no room for more pictures. Remove some, or start a new conversation.",
    ),
    "camera": ("拍照", "Camera"),
    "camera_start": ("打开摄像头", "Switch the camera on"),
    "url": ("网址", "Address"),
    "url_fetch": ("取图", "Fetch"),
    "remove": ("移除", "Remove"),
    "picture_refused": ("“{name}”：{reason}", "“{name}”: {reason}"),
    "reason_pixels": (
        "这张图太大了，像素超过了上限。请先缩小再试。",
        "That picture has more pixels than I can take. Please make it smaller and try again.",
    ),
    "reason_bytes": (
        "这个文件太大了。请换一张小一点的图片。",
        "That file is too large. Please take a smaller one.",
    ),
    "reason_empty": ("这个文件是空的。请重新选择。", "That file is empty. Please choose it again."),
    "reason_format": (
        "这不是我认识的图片（PNG、JPEG、WebP、GIF、BMP、AVIF、HEIC），或者文件头坏了。TIFF 等请先另存为 JPEG。",
        "That is no picture I can read (PNG, JPEG, WebP, GIF, BMP, AVIF, HEIC), or its first bytes are damaged. Save "
        "TIFF and the like as JPEG first.",
    ),
    "reason_damaged": (
        "这张图片不完整或已损坏。请换一份完整的。",
        "That picture is cut short or damaged. Please get a complete copy.",
    ),
    "reason_url": (
        "这个网址取不到图片。只能访问公开的 http(s) 地址。",
        "No picture could be fetched from there. Only public http(s) addresses are visited.",
    ),
    "reason_other": ("这张图片打不开。请换一张。", "That picture cannot be used. Please take another one."),
    # talking
    "ask": ("问点什么，也可以把图片拖到这里或粘贴…", "Ask something; drop or paste pictures here too…"),
    "ask_default": ("描述这张图片。", "Describe the picture."),
    "suggest_1": ("这是什么？", "What is this?"),
    "suggest_2": ("描述这张图片。", "Describe the picture."),
    "suggest_3": ("图中有几个物体？", "How many objects are there?"),
    "suggest_4": ("它是什么颜色？", "What colour is it?"),
    "looking": ("正在看…", "Looking…"),
    "stop": ("停止", "Stop"),
    "regenerate": ("重新回答", "Answer again"),
    "edit": ("编辑并重发", "Edit and resend"),
    "send": ("发送", "Send"),
    "cancel": ("取消", "Cancel"),
    "copy": ("复制", "Copy"),
    "copied": ("已复制 ✓", "Copied ✓"),
    "copy_failed": ("浏览器不允许复制", "The browser forbids copying"),
    "text_broken": (
        "这段文字里有不完整的字符，没有发送。请改一改再试。",
        "That text has half a character in it and was not sent. Please write it again.",
    ),
    "broken": (
        "出了点问题，这一页没有画完。可以继续，或开始新的对话。",
        "Something went wrong while this page was drawn. Go on, or start a new conversation.",
    ),
    "stopped": ("已停止", "Stopped"),
    "length": ("到达长度上限", "Cut at the longest answer"),
    "timing_line": (
        "图像编码 {encode:.2f} 秒 · 首字 {first:.2f} 秒 · {rate} · {tokens} 个词元",
        "picture {encode:.2f} s · first token {first:.2f} s · {rate} · {tokens} tokens",
    ),
    "rate": ("{rate:.0f} 词元/秒", "{rate:.0f} tokens/s"),
    "too_long": (
        "对话太长，模型装不下了。开始新的对话，或少用几张图片。",
        "The conversation is too long for the model. Start a new one, or show fewer pictures.",
    ),
    "many_pictures": (
        "这个模型只学过 {most} 张图片的对话，这里有 {number} 张，可能会混淆。换一张图片请开始新对话。",
        "This model was taught talks with {most} picture; here are {number}, which it may mix up. "
        "Start a new conversation for another picture.",
    ),
    "failed": ("这次没能回答：{problem}", "No answer this time: {problem}"),
    # keeping
    "conversation": ("这次对话", "This conversation"),
    "new": ("新对话", "New conversation"),
    "talks": ("以前的对话", "Earlier talks"),
    "talks_kept": (
        "对话保存在运行本页的机器上，只有这个浏览器能看到。",
        "Talks are kept on the machine that runs this page; only this browser sees them.",
    ),
    "talks_unkept": (
        "关闭或刷新页面后，这些对话就没有了。",
        "These talks are gone when the page is closed or reloaded.",
    ),
    "forget": ("删除“{title}”", "Delete “{title}”"),
    "forgotten": ("已删除“{title}”。", "“{title}” is deleted."),
    "undo": ("撤销删除", "Bring it back"),
    "shelf_full": (
        "这段对话没有保存：已没有空间。删除一些以前的对话。",
        "This talk is not kept: there is no room. Delete some earlier ones.",
    ),
    "save_markdown": ("存为 Markdown", "Save as Markdown"),
    "save_json": ("存为 JSON", "Save as JSON"),
    "load": ("载入对话（JSON）", "Load a conversation (JSON)"),
    "load_refused": (
        "这不是保存下来的对话，或者里面的图片坏了。",
        "That is no saved conversation, or a picture in it is damaged.",
    ),
    # documents
    "library_lead": (
        "放进文档和图片，然后提问：每句回答都注明出处，点开就能看到原文所在的那一页。",
        "Put documents and pictures in, and ask: every answer says where it comes from. Click a source to see the "
        "place.",
    ),
    "library_files": ("资料（{num}）", "Documents ({num})"),
    "library_drop": ("放入文档或图片", "Add documents or pictures"),
    "library_kept": (
        "资料保存在运行本页的机器上，只有这个浏览器能看到；删除就是真的删除。",
        "They are kept on the machine that runs this page; only this browser sees them, and what is deleted is gone.",
    ),
    "library_unkept": ("关闭页面后，这些资料就没有了。", "They are gone when the page is closed."),
    "library_shared": (
        "这个资料库所有访客都能提问，只有坐在这台机器前的人能改动。",
        "All visitors ask this library; only whoever sits at this machine changes it.",
    ),
    "library_folder": ("同步本机文件夹", "Sync a folder of this machine"),
    "library_folder_hint": ("例如 ~/文档/手册", "such as ~/Documents/manuals"),
    "library_sync": ("同步", "Sync"),
    "library_reading": ("正在读入…", "Reading…"),
    "library_queue": ("别人的资料正在读入，轮到你就开始。", "Somebody else's are being read; yours come next."),
    "library_progress": ("{num} 个文件中的第 {done} 个已读完。", "{done} of {num} files."),
    "library_stopped": ("已停下，读完的都还在。", "Stopped. What was read is there."),
    "library_failed": ("没有做成：{problem}", "That did not work: {problem}"),
    "library_unopened": ("这个资料库打不开。", "This library cannot be opened."),
    "library_empty": (
        "还没有资料。PDF、Word、Excel、PowerPoint、EPUB、网页、邮件、文本和图片都可以。",
        "Nothing is here yet. PDF, Word, Excel, PowerPoint, EPUB, HTML, mail, text and pictures are read.",
    ),
    "library_more": ("……还有 {num} 个。", "… and {num} more."),
    "library_remove": ("删除“{name}”", "Remove “{name}”"),
    "library_ask": ("提问", "Ask"),
    "library_ask_hint": ("例如：保修期多久？", "such as: How long is the warranty?"),
    "library_searching": ("正在查找…", "Searching…"),
    "library_page": ("第 {number} 页", "page {number}"),
    "library_sheet": ("出处：{quote}", "Where it says: {quote}"),
    "library_changed": (
        "文件已经变了或不在了，看不到那一页；下面是读入时的原文。",
        "The file has changed or is gone, so its page cannot be shown. This is what it said when it was read.",
    ),
    "library_gone": (
        "这份资料已经不在资料库里，或者变了。请再问一次。",
        "That document is not in the library any more, or has changed. Ask again.",
    ),
    "document_kind": ("这种文件不会读。", "Files of this kind are not read."),
    "document_room": (
        "放不下了。先删除一些资料。",
        "There is no room for it. Remove some documents first.",
    ),
    "document_encrypted": ("它有密码。请去掉密码再放进来。", "It has a password. Save it without one."),
    "document_scan": (
        "里面是扫描的图片，这台机器没有装文字识别。",
        "Its pages are scans, and this machine has nothing that reads those.",
    ),
    "document_empty": ("里面没有文字，也没有图片。", "There is no text and no picture in it."),
    "document_large": ("它太大了。", "It is too large."),
    "document_damaged": ("文件坏了，或者不是它自称的格式。", "It is damaged, or not what its name says."),
    # comparing
    "compare_lead": (
        "同一张图、同一个问题，交给两个模型、两个适配器，或同一模型的两种设置。",
        "One picture and one question for two models, two adapters, or two settings of one model.",
    ),
    "compare_need": ("先选一张图片。", "Choose a picture first."),
    "compare_same": (
        "左右两边的模型与设置相同，回答也会相同：换一个模型、量化方式或设置。",
        "Both sides are the same model with the same settings and will answer alike: change one of them.",
    ),
    "compare_run": ("开始对比", "Compare"),
    "question": ("问题", "Question"),
    # teaching
    "teach_lead": (
        "给几张图片起名字，让模型学一学。学到的适配器可以下载，也会出现在模型列表里。",
        "Name a handful of pictures and let the model learn. What it learnt is an adapter: download it, or "
        "pick it from the list of models.",
    ),
    "answer_for": ("图片 {number} 的答案", "Answer for picture {number}"),
    "answer_hint": ("应该怎么回答？", "What should it answer?"),
    "method": ("方法", "Method"),
    "method_help": (
        "lora：语言模型里的小矩阵；ptuning：可学的前缀；qformer：只学看图的桥。",
        "lora: small matrices in the text model; ptuning: a prefix it learns; qformer: only the bridge that looks.",
    ),
    "trains_lora": (
        "要学的是语言模型每个线性层旁边的小矩阵：{num} 个数，相当于模型的 {share}。",
        "What learns: small matrices beside every linear layer of the text model, {num} numbers, {share} of the model.",
    ),
    "trains_ptuning": (
        "要学的是语言模型前面的一段前缀：{num} 个数，相当于模型的 {share}。",
        "What learns: a prefix of the text model, {num} numbers, {share} of the model.",
    ),
    "trains_qformer": (
        "要学的是看图的桥：{num} 个数，占模型的 {share}。",
        "What learns: the bridge that looks, {num} numbers, {share} of the model.",
    ),
    "teach_steps_most": (
        "最多 {num} 步，全学会就停；开始以后会显示还要多久。",
        "{num} steps at the most, fewer if all is learnt before; the time left shows as soon as it learns.",
    ),
    "teach_steps": (
        "共 {num} 步；开始以后会显示还要多久。",
        "{num} steps; the time left shows as soon as it learns.",
    ),
    "teach_general": (
        "也会复习已经会的，免得忘掉。",
        "What it knows is gone over too, so that it is not forgotten.",
    ),
    "teach_run": ("开始教", "Teach it"),
    "teach_need": (
        "至少要 {num} 张图片，每张都要有答案。",
        "It takes at least {num} pictures, each with its answer.",
    ),
    "teaching": ("正在学习…", "Learning…"),
    "teach_progress": ("第 {step} 步，共 {num} 步。", "{step} of {num} steps."),
    "teach_left": ("最多还要 {seconds} 秒。", "At most {seconds} seconds left."),
    "teach_ready": ("正在准备要复习的…", "Getting ready what it will go over…"),
    "teach_failed": ("没学成。", "It did not learn."),
    "teach_stop": ("停下，保留已学到的", "Stop, and keep what it learnt"),
    "teach_stopping": ("这一步学完就停…", "Stopping behind this step…"),
    "teach_queue": (
        "别人正在教这个模型。前面还有 {num} 课，轮到你就开始。",
        "Others are teaching this model. {num} before you; yours begins when it is your turn.",
    ),
    "teach_before": ("先问一遍：还没学时怎么回答…", "Asking first: what it answers before…"),
    "teach_after": ("再问一遍：学完以后怎么回答…", "Asking again: what it answers now…"),
    "taught_all": ("学会了：{num} 张图片的回答都对。", "It learnt them: right about all {num} pictures."),
    "taught_some": (
        "{num} 张里学会了 {right} 张，另有 {changed} 张的回答变了但还不对。图片多给几张、名字起得更不一样，会更好。",
        "It learnt {right} of {num}; {changed} more are answered differently, but not right. More pictures of each "
        "name help.",
    ),
    "taught_nothing": (
        "什么也没学会：学完以后，每张图片的回答都和以前一样。换一种方法试试。",
        "It learnt nothing: every picture is answered as before. Try another method.",
    ),
    "taught_stopped": ("还没轮到或还没开始就停了，什么也没学。", "Stopped before it began; nothing was learnt."),
    "answer_before": ("以前", "before"),
    "answer_after": ("现在", "now"),
    "answer_wanted": ("应为", "wanted"),
    "taught_partly": (
        "已停下：学了 {step} 步（共 {num} 步）。学到的都在这个适配器里。",
        "Stopped after {step} of {num} steps. What it learnt until then is in this adapter.",
    ),
    "step": ("步", "step"),
    "loss": ("损失", "loss"),
    "adapter": ("下载适配器", "Download the adapter"),
    "adapter_help": (
        '解压后：VisGLM.from_pretrained("visglm-adapter")',
        'Unpacked: VisGLM.from_pretrained("visglm-adapter")',
    ),
}


# Whatever Markdown, and what Streamlit adds to it (colours, icons, formulas), could take for more than a letter.
MARKS = re.compile(r"""[!-/:-@\[-`{-~]""")
# What of it counts in the middle of a line of a file, and at its beginning.
INLINE_MARKS = re.compile(r"[\\`*_\[\]<>&!|~$#^]")
LINE_MARKS = re.compile(r"^(\s*\d*)([-+=.)])", re.MULTILINE)


def as_label(text: str) -> str:
    """A label of Streamlit's that reads as this text, on one line, and does nothing: no link, picture, entity, icon or
    formula."""
    return MARKS.sub(lambda mark: "\\" + mark[0], " ".join(text.split()))


def as_markdown(text: str) -> str:
    """The same for a file, which is read without being rendered, too: no more is marked than must be."""
    marked = INLINE_MARKS.sub(lambda mark: "\\" + mark[0], text)
    return LINE_MARKS.sub(r"\1\\\2", marked).replace("\n", "\\\n")


def notice(text: str, icon: str = "!") -> str:
    """A box with a sentence in which names that others gave stand: as HTML, and nothing in it is markup."""
    return f'<div class="notice" role="alert"><b>{icon}</b><span>{html.escape(text)}</span></div>'


@dataclass(frozen=True)
class Told:
    """A sentence that is kept: which one, and what stands in it. It is said in the language of the page of the moment.

    Args:
        key: of `TEXTS`.
        values: by name; those that are `Told` themselves are said too.
    """

    key: str
    values: dict[str, Any] = field(default_factory=dict)

    def said(self, say: Callable[..., str]) -> str:
        values = {name: each.said(say) if isinstance(each, Told) else each for name, each in self.values.items()}
        return say(self.key, **values)


def speak(language: str) -> Callable[..., str]:
    """The function that gives a text of the table in this language, its `{names}` filled in."""
    column = list(LANGUAGES).index(language)
    return lambda key, **values: TEXTS[key][column].format(**values) if values else TEXTS[key][column]
