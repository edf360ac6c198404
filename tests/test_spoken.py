"""From written to spoken Russian."""

from __future__ import annotations

import doctest
import itertools
import re
from collections.abc import Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import kvarts.spoken
from kvarts.alphabet import ALPHABET, foreign_characters
from kvarts.errors import ManifestError
from kvarts.numerals import CASES, LARGEST, cardinal, compound_stem, forms_with_ending, ordinal, roman
from kvarts.spoken import REMEDIES, SPOKEN_VERSION, Spoken, spoken, spoken_rows
from kvarts.text import normalise

# What is written, and what is said. Nothing in it is noted.
SAID = """
Салют, хватит! | салют хватит
Ёлка, ёж и всё-таки… | елка еж и все таки
«Да» — сказал он (тихо). | да сказал он тихо
вол+ос во́лос | волос волос
Из-за угла | из за угла
Хм, ну и ну. Тсс! | хм ну и ну тсс
Это был я. Потом ушёл. | это был я потом ушел
Я отдал им. Потом ушёл. | я отдал им потом ушел
Я люблю рис. Он вкусный. | я люблю рис он вкусный
В космосе много тел. Они холодные. | в космосе много тел они холодные
0 | ноль
7 | семь
12 | двенадцать
40 | сорок
90 | девяносто
100 | сто
115 | сто пятнадцать
342 | триста сорок два
999 | девятьсот девяносто девять
1000 | тысяча
1001 | тысяча один
3000 | три тысячи
5013 | пять тысяч тринадцать
1 000 000 | один миллион
10 000 рублей | десять тысяч рублей
2 500 000 человек | два миллиона пятьсот тысяч человек
15 300 рублей | пятнадцать тысяч триста рублей
1500 рублей | тысяча пятьсот рублей
около 1500 рублей | около тысячи пятисот рублей
за 1000 рублей | за тысячу рублей
к 1000 рублей | к тысяче рублей
1 рубль | один рубль
2 рубля | два рубля
5 рублей | пять рублей
21 рубль | двадцать один рубль
1 минута | одна минута
1 минуту | одну минуту
через 1 минуту | через одну минуту
2 минуты | две минуты
через 2 минуты | через две минуты
22 минуты | двадцать две минуты
за 2 минуты | за две минуты
без 5 минут | без пяти минут
без 2 минут | без двух минут
5 лет | пять лет
3 года | три года
1 год | один год
21 год | двадцать один год
до 18 лет | до восемнадцати лет
старше 16 лет | старше шестнадцати лет
более 5 лет | более пяти лет
в течение 3 лет | в течение трех лет
в возрасте 90 лет | в возрасте девяноста лет
через 40 дней | через сорок дней
после 40 дней | после сорока дней
2 книги | две книги
1 книга | одна книга
21 книгу | двадцать одну книгу
2 дома | два дома
5 домов | пять домов
в 5 домах | в пяти домах
в 21 доме | в двадцати одном доме
к 5 домам | к пяти домам
с 5 домами | с пятью домами
с 2 друзьями | с двумя друзьями
о 3 товарищах | о трех товарищах
3 окна | три окна
1 окно | одно окно
2 окна | два окна
2 новые книги | две новые книги
2 новых дома | два новых дома
в 3 больших городах | в трех больших городах
2 человека | два человека
5 человек | пять человек
на 2 человек | на двух человек
на 5 человек | на пять человек
1 раз | один раз
в 2 раза | в два раза
в 5 раз | в пять раз
3 раза в день | три раза в день
в 5 часов | в пять часов
к 5 часам | к пяти часам
в 5 часов 30 минут | в пять часов тридцать минут
до 5 часов 30 минут | до пяти часов тридцати минут
в 2 часа ночи | в два часа ночи
в 7 утра | в семь утра
в 2 ночи | в два ночи
к 8 вечера | к восьми вечера
от 5 до 10 | от пяти до десяти
с 9 до 18 | с девяти до восемнадцати
от 200 до 300 метров | от двухсот до трехсот метров
между 5 и 10 | между пятью и десятью
между 2 и 3 часами | между двумя и тремя часами
5 и 10 лет | пять и десять лет
2 и 3 книги | две и три книги
5–10 минут | пять десять минут
2-3 дня | два три дня
около 5-10 минут | около пяти десяти минут
20–30 % | двадцать тридцать процентов
100–200 рублей | сто двести рублей
в 5 классе | в пятом классе
на 7 этаже | на седьмом этаже
5 место | пятое место
по 5 каналу | по пятому каналу
дом 5 | дом пять
в доме 5 | в доме пять
дом 5, корпус 2 | дом пять корпус два
дом 5 корпус 2 | дом пять корпус два
квартира 42 | квартира сорок два
в квартире 2 комнаты | в квартире две комнаты
автобус 119 | автобус сто девятнадцать
на странице 10 | на странице десять
школа № 5 | школа номер пять
№5 | номер пять
№ 1945 | номер тысяча девятьсот сорок пять
5-й | пятый
5-й этаж | пятый этаж
6-ой | шестой
2-ой этаж | второй этаж
3-й | третий
3-го дня | третьего дня
1-го | первого
5-го | пятого
1-ая | первая
1-я глава | первая глава
3-я | третья
2-му | второму
2-ю главу | вторую главу
в 5-й главе | в пятой главе
с 5-й главы | с пятой главы
на 2-м этаже | на втором этаже
в 1-м классе | в первом классе
со 2-м курсом | со вторым курсом
в 3-х километрах | в трех километрах
по тел. 123-45-67 | по телефону сто двадцать три сорок пять шестьдесят семь
тел.: 8 (812) 300-12-34 | тел восемь восемьсот двенадцать триста двенадцать тридцать четыре
1-е место | первое место
1-е мая | первое мая
к 1-му мая | к первому мая
90-е годы | девяностые годы
в 90-х годах | в девяностых годах
в 1990-х | в тысяча девятьсот девяностых
1812-го | тысяча восемьсот двенадцатого
21-й век | двадцать первый век
100-й | сотый
40-го | сорокового
2000-й | двухтысячный
2-х | двух
3-х месяцев | трех месяцев
4-х | четырех
5-ти | пяти
7-ми | семи
20-ти | двадцати
25-ти | двадцати пяти
40-ка | сорока
2-мя | двумя
5й этаж | пятый этаж
90х | девяностых
11-летний мальчик | одиннадцатилетний мальчик
5-этажный | пятиэтажный
1-комнатная | однокомнатная
2-комнатную | двухкомнатную
40-градусная | сорокаградусная
90-минутный | девяностоминутный
100-летие | столетие
150-летие | стопятидесятилетие
1000-летие | тысячелетие
25-летие | двадцатипятилетие
2-кратный | двукратный
3-кратный | трехкратный
100-процентный | стопроцентный
Ту-154 | ту сто пятьдесят четыре
Спутник-1 | спутник один
12.05.2021 | двенадцатого мая две тысячи двадцать первого года
01.01.2000 | первого января двухтысячного года
31.12.1999 г. | тридцать первого декабря тысяча девятьсот девяносто девятого года
12 мая 2021 года | двенадцатого мая две тысячи двадцать первого года
12 мая 2021 г. он уехал | двенадцатого мая две тысячи двадцать первого года он уехал
12 мая 2021 | двенадцатого мая две тысячи двадцать первого года
12 мая | двенадцатого мая
3 сентября | третьего сентября
до 30 июня | до тридцатого июня
к 8 марта | к восьмому марта
на 12 мая | на двенадцатое мая
по 15 июня | по пятнадцатое июня
с 10 июня | с десятого июня
с 1 по 5 мая | с первого по пятое мая
с 8 марта 2020 года | с восьмого марта две тысячи двадцатого года
перед 7 ноября | перед седьмым ноября
в 2021 году | в две тысячи двадцать первом году
к 2021 году | к две тысячи двадцать первому году
с 2021 года | с две тысячи двадцать первого года
2021 год | две тысячи двадцать первый год
в мае 1945 года | в мае тысяча девятьсот сорок пятого года
в 41 году | в сорок первом году
45 года | сорок пятого года
в 2021 г. | в две тысячи двадцать первом году
до 1917 г. | до тысяча девятьсот семнадцатого года
за 2020 г. | за две тысячи двадцатый год
10:30 | десять тридцать
в 10:05 | в десять ноль пять
в 21:01 | в двадцать один ноль один
18:00 | восемнадцать ноль ноль
00:15 | ноль ноль пятнадцать
09:45 | девять сорок пять
150 руб. | сто пятьдесят рублей
150р. | сто пятьдесят рублей
150 ₽ | сто пятьдесят рублей
1 руб. | один рубль
2 руб. 50 коп. | два рубля пятьдесят копеек
1 руб. 1 коп. | один рубль одна копейка
от 150 руб. | от ста пятидесяти рублей
в размере 200 руб. | в размере двухсот рублей
5 $ | пять долларов
$5 | пять долларов
$1 | один доллар
$5 млн | пять миллионов долларов
€20 | двадцать евро
3 £ | три фунта
150 тыс. руб. | сто пятьдесят тысяч рублей
2 тыс. человек | две тысячи человек
1 млн | один миллион
3 млрд руб. | три миллиарда рублей
до 2 млн | до двух миллионов
20 % | двадцать процентов
20% | двадцать процентов
1 % | один процент
на 2% больше | на два процента больше
до 100 % | до ста процентов
3,5 | три целых пять десятых
3,5 км | три целых пять десятых километра
0,5 % | ноль целых пять десятых процента
1,7 млн руб. | одна целая семь десятых миллиона рублей
2,01 | две целых одна сотая
36,6 | тридцать шесть целых шесть десятых
21,25 м | двадцать одна целая двадцать пять сотых метра
3,141 | три целых сто сорок одна тысячная
с 5 % до 7 % | с пяти процентов до семи процентов
до 3,5 % | до трех целых пяти десятых процента
3.5 кг | три целых пять десятых килограмма
2,5 раза | две целых пять десятых раза
5 км | пять километров
5км | пять километров
42 км | сорок два километра
1 кг | один килограмм
3 кг | три килограмма
200 г сахара | двести граммов сахара
10 мин | десять минут
1 сек. | одна секунда
2 ч. 15 мин. | два часа пятнадцать минут
около 2 ч | около двух часов
до 5 мин | до пяти минут
60 км/ч | шестьдесят километров в час
3 м/с | три метра в секунду
10 кв. м | десять квадратных метров
21 кв. м | двадцать один квадратный метр
2 м² | два квадратных метра
3 куб. м | три кубических метра
150 л. с. | сто пятьдесят лошадиных сил
5 у. е. | пять условных единиц
стоит 100 у.е. | стоит сто условных единиц
до 21 у. е. | до двадцати одной условной единицы
3 ст. л. сахара | три столовые ложки сахара
к 2 ч. л. соли | к двум чайным ложкам соли
5 ст. л | пять столовых ложек
5 мая | пятого мая
5 мая, в среду, едем | пятого мая в среду едем
к 5 мая | к пятому мая
на 5 мая | на пятое мая
по 5 мая | по пятое мая
от 5 мая | от пятого мая
о 5 мая | о пятом мая
перед 5 мая | перед пятым мая
день 9 мая | день девятого мая
9 мая 1945 года | девятого мая тысяча девятьсот сорок пятого года
Это был я. Ты где? | это был я ты где
760 мм рт. ст. | семьсот шестьдесят миллиметров ртутного столба
220 Вт | двести двадцать ватт
5 чел. | пять человек
2 шт. | две штуки
3 мес. | три месяца
5 дн. | пять дней
до +5° | до плюс пяти градусов
до −2 градусов | до минус двух градусов
+5° | плюс пять градусов
-5 градусов | минус пять градусов
−10° | минус десять градусов
–7 градусов | минус семь градусов
+7 495 123-45-67 | плюс семь четыреста девяносто пять сто двадцать три сорок пять шестьдесят семь
8 (495) 123-45-07 | восемь четыреста девяносто пять сто двадцать три сорок пять ноль семь
8-800-555-35-35 | восемь восемьсот пятьсот пятьдесят пять тридцать пять тридцать пять
+7 (900) 005-00-01 | плюс семь девятьсот ноль ноль пять ноль ноль ноль один
123-45-67 | сто двадцать три сорок пять шестьдесят семь
т. е. так | то есть так
Т. е. он пришёл | то есть он пришел
т.к. поздно | так как поздно
и т. д. | и так далее
и т.п. | и тому подобное
в т. ч. дети | в том числе дети
в 44 году до н. э. | в сорок четвертом году до нашей эры
напр., так | например так
ул. Ленина, д. 5, кв. 12 | улица ленина дом пять квартира двенадцать
по ул. Ленина | по улице ленина
с ул. Ленина | с улицы ленина
до пл. Победы | до площади победы
г. Москва | город москва
в г. Москве | в городе москве
в г. Москву | в город москву
из г. Твери | из города твери
завод им. Ленина | завод имени ленина
театр им. Пушкина | театр имени пушкина
кoт и пec | кот и пес
Bиктор | виктор
MОCКBА | москва
ещë | еще
XIX век | девятнадцатый век
в XIX веке | в девятнадцатом веке
ХIХ века | девятнадцатого века
к XX веку | к двадцатому веку
"""

# What is written, what comes out, and the notes on it, as what:kind.
LEFT = """
c нами | c нами | c:lookalike
BMW | bmw | BMW:foreign
Слушай iPhone | слушай iphone | iPhone:foreign
Wi-Fi | wi-fi | Wi-Fi:foreign
деньgи | деньgи | деньgи:mixed
олbга | олbга | олbга:mixed
сл0во | сл0во | сл0во:mixed
3емля | 3емля | 3емля:mixed
covid-19 | covid-19 | covid-19:mixed
iPhone13 | iphone13 | iPhone13:mixed
т34 | т34 | т34:mixed
дом 2а | дом 2а | 2а:mixed
їжак | їжак | їжак:foreign
ὁ λόγος | ὁ λογος | ὁ:foreign λόγος:foreign
Пётр I | петр i | I:roman
XX в. | xx в. | XX в.:roman
XVIII и XIX века | xviii и xix века | XVIII:roman XIX:roman
ХХ век | хх век | ХХ:abbreviation
1/2 | 1/2 | 1/2:number
½ | ½ | ½:number
1,5 часа | 1,5 часа | 1,5:number
счёт 3:1 | счет 3:1 | 3:1:number
1:30 | 1:30 | 1:30:number
до 10:30 | до 10:30 | 10:30:number
25:10 | 25:10 | 25:10:number
007 | 007 | 007:number
12.5 | 12.5 | 12.5:number
12.05.21 | 12.05.21 | 12.05.21:number
32.05.2021 | 32.05.2021 | 32.05.2021:number
30 февраля | 30 февраля | 30 февраля:number
1.2.3 | 1.2.3 | 1.2.3:number
2021-05-12 | 2021-05-12 | 2021-05-12:number
в 1945 | в 1945 | 1945:agreement
2000 | 2000 | 2000:agreement
12345 | 12345 | 12345:agreement
стоит 1500 рублей | стоит 1500 рублей | 1500:agreement
осталась 1 | осталась 1 | 1:agreement
1 из них | 1 из них | 1:agreement
2 суток | 2 суток | 2:agreement
1 класс | 1 класс | 1:agreement
2 класса | 2 класса | 2:agreement
2 абырвалга | 2 абырвалга | 2:agreement
до 41 года | до 41 года | 41 года:agreement
1941–1945 гг. | 1941–1945 гг. | 1941–1945 гг.:agreement
2021 г. | 2021 г. | 2021 г.:agreement
сегодня 12 мая | сегодня 12 мая | 12 мая:agreement
с 8 марта! | с 8 марта | 8 марта:agreement
12–15 мая | 12–15 мая | 12–15 мая:agreement
12 и 13 мая | 12 и 13 мая | 12 и 13 мая:agreement
в 5-й | в 5-й | 5-й:agreement
1-е | 1-е | 1-е:agreement
во 2-х | во 2-х | 2-х:agreement
с 5-ю | с 5-ю | 5-ю:agreement
в 1 ночи | в 1 ночи | 1:agreement
в 5 км от города | в 5 км от города | 5 км:agreement
заплатил 21 коп. | заплатил 21 коп. | 21 коп.:agreement
5-бой | 5-бой | 5-бой:number
выпущено в 1945, книг мало | выпущено в 1945, книг мало | 1945:agreement
Группа «Tokio Hotel» (да). Вот | группа «tokio hotel» (да вот | Tokio:foreign Hotel:foreign
сидим 😀 BMW | сидим bmw | BMW:foreign
с 2000 рублей | с 2000 рублей | 2000:agreement
Люблю рис. BMW | люблю рис, bmw | BMW:foreign
автобусы 5 150 | автобусы 5 150 | 5 150:number
5 г. | 5 г. | 5 г.:abbreviation
5 т. | 5 т. | 5 т.:abbreviation
5 °C | 5 °c | 5 °C:number
5%-ный | 5%-ный | 5%-ный:number
-5 яблок | -5 яблок | -5:number
2 = 2 | 2 = 2 | 2 = 2:number
Иван & Марья | иван & марья | &:symbol
сто % | сто % | %:symbol
№ | № | №:symbol
а = б | а = б | =:symbol
и др. | и др. | др.:abbreviation
см. выше | см. выше | см.:abbreviation
на ул. Ленина | на ул. ленина | ул.:abbreviation
р. Волга | р. волга | р.:abbreviation
Московский р-н | московский р-н | р-н:abbreviation
телефон б/у | телефон б/у | б/у:abbreviation
ст. 105 | ст. 105 | ст. 105:abbreviation
6 «Б» класс | 6 «б» класс | 6 «Б»:agreement
18+ | 18+ | 18+:number
я люблю рис. он вкусный | я люблю рис. он вкусный | рис.:abbreviation
в СССР | в ссср | СССР:abbreviation
пять км | пять км | км:abbreviation
А. С. Пушкин | а с пушкин | А:initials С:initials
и. о. директора | и. о. директора | и. о.:abbreviation
к. т. н. Иванов | к. т. н. иванов | к. т. н.:abbreviation
сто у. е. | сто у. е. | у. е.:abbreviation
пять ч. л. соли | пять ч. л. соли | ч. л.:abbreviation
1,5 у.е. | 1,5 у.е. | 1,5 у.е.:number
закон, ч. 1 | закон, ч. 1 | ч. 1:abbreviation
9 мая | 9 мая | 9 мая:agreement
наступило 5 мая | наступило 5 мая | 5 мая:agreement
отмечаем 9 мая | отмечаем 9 мая | 9 мая:agreement
5 мая — понедельник | 5 мая — понедельник | 5 мая:agreement
5 мая это среда | 5 мая это среда | 5 мая:agreement
почта ivan@mail.ru | почта ivan@mail.ru | ivan@mail.ru:address
сайт kvarts.ru. | сайт kvarts.ru | kvarts.ru:address
https://a.ru/b?c=1 | https://a.ru/b?c=1 | https://a.ru/b?c=1:address
+74951234567 | плюс 74951234567 | 74951234567:agreement
"""


def _rows(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split(" | ")] for line in table.strip().splitlines()]


@pytest.mark.parametrize(("written", "said"), _rows(SAID))
def test_what_is_written_and_what_is_said(written: str, said: str) -> None:
    assert spoken(written) == Spoken(said, ())
    assert spoken(written).is_clean


@pytest.mark.parametrize(("written", "text", "notes"), _rows(LEFT))
def test_what_is_left_and_noted(written: str, text: str, notes: str) -> None:
    result = spoken(written)
    assert (result.text, " ".join(f"{note.what}:{note.kind}" for note in result.notes)) == (text, notes)
    assert result.is_clean == (not foreign_characters(text))
    assert all(written[note.start : note.stop] == note.what for note in result.notes)
    assert all(note.remedy.startswith(REMEDIES[note.kind]) for note in result.notes)


def test_the_tables_are_long_enough() -> None:
    assert len(_rows(SAID)) >= 200
    assert {kind for _, _, notes in _rows(LEFT) for kind in re.findall(r":([a-z]+)(?: |$)", notes)} == {*REMEDIES}


# --------------------------------------------------------------------------------------------------------- properties


def test_the_examples_of_the_module() -> None:
    assert doctest.testmod(kvarts.spoken) == (0, 2)


# Bits of real texts, to be thrown together, one a line.
BITS = [
    *re.findall(
        r"[^ \n]+",
        """в на с до от по за к около между сегодня дом № и или , . — - – + & = « » ( ) %
1 2 5 11 21 40 100 1000 1500 2021 1945 0 05 3,5 1,5 3.5 10:30 1:30 12.05.2021 12.5 1/2 5-10 5–7 5-й 2-м 3-го 90-е
7-ю 2-х 11-летний +5 -5 $5 5% 20 % 5² ½ 5%-ный 123-45-67 IV XX xx c B 3d covid-19 ту-154 т34 сл0во
книг книги дома домах лет года году г. гг. мая рублей тысяч век века ночи км руб. ° °C Москве ул. д. др. т. е.
им. С. Я. СССР BMW кoт Bиктор ещё р-н б/у a@b.ru новых абырвалг е\u0308 во\u0301да вол+ос 12\u00a0000""",
    ),
    "10 000",
    "150 тыс. руб.",
    "+7 495 123-45-67",
    "12 мая",
]
texts = st.one_of(
    st.text(),
    st.lists(st.tuples(st.sampled_from(BITS), st.sampled_from([" ", " ", " ", "", ", ", ". "])), max_size=8).map(
        lambda pairs: "".join(itertools.chain.from_iterable(pairs))
    ),
)


@given(texts, st.booleans())
@example("40 т. д.", False)  # what is left beside an abbreviation can be read once that is words
@example("в 1945, книг мало", True)
@settings(max_examples=150, deadline=None)
def test_the_second_time_nothing_changes(written: str, keep_yo: bool) -> None:
    once = spoken(written, keep_yo=keep_yo)
    assert spoken(once.text, keep_yo=keep_yo).text == once.text
    assert once.text == " ".join(once.text.split())


@given(texts)
@settings(max_examples=150, deadline=None)
def test_every_note_has_a_place_and_every_foreign_character_a_note(written: str) -> None:
    result = spoken(written)
    assert list(result.notes) == sorted(result.notes, key=lambda note: (note.start, note.stop))
    for note in result.notes:
        assert 0 <= note.start < note.stop <= len(written)
        assert note.what == written[note.start : note.stop]
        assert note.remedy.startswith(REMEDIES[note.kind])
    noted = normalise("".join(note.what for note in result.notes)) + "".join(note.what for note in result.notes).lower()
    assert set(foreign_characters(result.text)) <= set(noted) | set(".,!?…:;()[]«»„“”\"'’–—-")


@given(st.lists(st.sampled_from([bit for bit in BITS if re.search(r"\w", bit)]), min_size=1, max_size=6))
@settings(max_examples=150, deadline=None)
def test_no_word_is_lost(tokens: list[str]) -> None:
    """Between words of its own, each token is itself in the result, or is noted, or other words stand there."""
    marks = ["альфа", "бета", "вита", "гамма", "дельта", "эпсилон", "дзета"]
    written = " ".join(itertools.chain.from_iterable(zip(marks, tokens, strict=False))) + " " + marks[len(tokens)]
    result = spoken(written)
    assert [word for word in result.text.split() if word in marks] == marks[: len(tokens) + 1]
    for token, before, after in zip(tokens, marks, marks[1:], strict=False):
        between = re.search(f"{before} (.*) ?{after}", result.text)
        assert between is not None, (token, result.text)
        assert between[1].strip(), (token, result.text)
        plain = normalise(token)
        is_kept = between[1].strip() == plain
        is_noted = any(normalise(token) in normalise(note.what) or note.what in token for note in result.notes)
        has_words = not foreign_characters(between[1]) and between[1].strip() != plain
        assert is_kept or is_noted or has_words, (token, result)


@given(
    st.lists(st.text(ALPHABET.strip(), min_size=1, max_size=12), max_size=8),
    st.lists(st.sampled_from(" ,!?—…»"), max_size=8),
)
@settings(deadline=None)
def test_russian_words_come_out_as_the_normaliser_makes_them(words: list[str], marks: list[str]) -> None:
    written = "".join(f"{word}{mark} " for word, mark in itertools.zip_longest(words, marks, fillvalue=""))
    for text in (written, written.upper(), written.capitalize()):
        assert spoken(text).text == normalise(text)
        assert spoken(text).is_clean


def test_plain_text_touches_no_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("read word by word")

    monkeypatch.setattr(kvarts.spoken, "_Reader", refuse)
    monkeypatch.setattr(kvarts.spoken, "_analyser", refuse)
    for text in ("Она завела, прядь волнистых вол+ос — за ухо.", "Ёлка и ёж: «Да!»", "", "Кто-то… там?", "э́то"):
        assert spoken(text) == Spoken(normalise(text), ())
    with pytest.raises(AssertionError, match="word by word"):
        spoken("5 минут")


def test_yo_is_kept_on_request() -> None:
    assert spoken("Ёж и 3 ещё, до 4 ч.", keep_yo=True).text == "ёж и три ещё до четырёх часов"
    assert spoken("Ёж", keep_yo=True).is_clean
    assert spoken("е\u0308ж", keep_yo=True).text == "ёж"
    assert spoken("3-го, 4-х и 5", keep_yo=True).text == "третьего четырёх и пять"


@pytest.fixture
def no_pymorphy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    kvarts.spoken._morphology.cache_clear()
    monkeypatch.setattr(kvarts.spoken, "_analyser", lambda: None)
    yield
    kvarts.spoken._morphology.cache_clear()


@pytest.mark.usefixtures("no_pymorphy")
def test_without_pymorphy_more_is_noted_and_nothing_is_said_otherwise() -> None:
    said = [(written, expected, spoken(written)) for written, expected in _rows(SAID)]
    assert [(row[0], row[2]) for row in said if not row[2].notes and row[2].text != row[1]] == []
    assert sum(not result.notes for _, _, result in said) > 0.8 * len(said)
    assert [written for written, text, _ in _rows(LEFT) if not spoken(written).notes] == []


@pytest.mark.usefixtures("no_pymorphy")
def test_without_pymorphy_the_remedy_names_it() -> None:
    [note] = spoken("2 книги").notes
    assert "kvarts[morphology]" in note.remedy
    [note] = spoken("2 суток из 5 лет, осталась 1").notes[1:]
    assert "kvarts[morphology]" not in note.remedy


# ------------------------------------------------------------------------------------------------------------ numerals

_VALUES = {
    word: int(value)
    for word, value in re.findall(
        r"(\w+) (\d+)",
        """ноль 0 один 1 одна 1 два 2 две 2 три 3 четыре 4 пять 5 шесть 6 семь 7 восемь 8 девять 9 десять 10
        одиннадцать 11 двенадцать 12 тринадцать 13 четырнадцать 14 пятнадцать 15 шестнадцать 16 семнадцать 17
        восемнадцать 18 девятнадцать 19 двадцать 20 тридцать 30 сорок 40 пятьдесят 50 шестьдесят 60
        семьдесят 70 восемьдесят 80
        девяносто 90 сто 100 двести 200 триста 300 четыреста 400 пятьсот 500 шестьсот 600 семьсот 700 восемьсот 800
        девятьсот 900""",
    )
}


def _value(words: str) -> int:
    """The other way round: what a cardinal in the nominative stands for, with falling values and right thousands."""
    total, group, least = 0, 0, 1000
    for word in words.split():
        if word in ("тысяча", "тысячи", "тысяч"):
            form = "тысяч" if group % 100 in range(11, 15) else {1: "тысяча", 2: "тысячи", 3: "тысячи", 4: "тысячи"}
            count = group or 1
            assert word == (form if isinstance(form, str) else form.get(count % 10, "тысяч"))
            total, group, least = 1000 * count, 0, 1000
        else:
            value = _VALUES[word]
            size = 1 if value < 10 else 10 if value < 20 else 10 if value < 100 else 100
            assert size < least
            least = 1 if value < 20 else size
            group += value
    return total + group


def test_numbers_to_9999_read_back() -> None:
    said = [cardinal(number) for number in range(10_000)]
    assert [_value(words) for words in said] == list(range(10_000))
    assert len(set(said)) == 10_000
    for number in range(0, 10_000, 7):
        assert spoken(f"№ {number}").text == f"номер {said[number]}"


def test_numbers_as_num2words_says_them() -> None:
    num2words = pytest.importorskip("num2words").num2words
    letters = dict(zip(CASES, "ngdaip", strict=True))

    def theirs(number: int, **options: str) -> str:
        words = re.sub("^одн(?:а|ой|у) (?=тысяч)", "", num2words(number, lang="ru", **options))
        return words.replace("ё", "е")

    for number in range(1, 10_000):
        assert cardinal(number).replace("ё", "е") == theirs(number)
    for number in [*range(1, 130), *range(130, 10_000, 37), 21_000, 345_678, 2_000_000]:
        for case in set(CASES) - {"accs"}:
            assert cardinal(number, case).replace("ё", "е") == theirs(number, case=letters[case])
            assert ordinal(number, case).replace("ё", "е") == theirs(number, to="ordinal", case=letters[case])
    # Its accusative is wrong from 2000 on («двух тысячи»), and makes «двадцать двух» living beings.
    for number in range(1, 2000):
        if number % 100 in (11, 12, 13, 14) or number % 10 not in (2, 3, 4) or number < 5:
            assert cardinal(number, "accs", animate=True).replace("ё", "е") == theirs(number, case="a")


@pytest.mark.parametrize(
    ("number", "case", "gender", "animate", "words"),
    [
        (0, "gent", "masc", False, "нуля"),
        (1, "accs", "femn", False, "одну"),
        (21, "accs", "masc", True, "двадцать одного"),
        (2, "accs", "femn", True, "двух"),
        (22, "accs", "masc", True, "двадцать два"),
        (3, "ablt", "masc", False, "тремя"),
        (8, "ablt", "masc", False, "восемью"),
        (40, "ablt", "masc", False, "сорока"),
        (90, "loct", "masc", False, "девяноста"),
        (50, "ablt", "masc", False, "пятьюдесятью"),
        (400, "ablt", "masc", False, "четырьмястами"),
        (300, "datv", "masc", False, "трёмстам"),
        (1000, "accs", "masc", False, "тысячу"),
        (2451, "gent", "femn", False, "двух тысяч четырёхсот пятидесяти одной"),
        (21_000, "ablt", "masc", False, "двадцатью одной тысячей"),
        (LARGEST, "nomn", "masc", False, None),
    ],
)
def test_cases_of_cardinals(number: int, case: str, gender: str, animate: bool, words: str | None) -> None:
    said = cardinal(number, case, gender, animate=animate)
    assert said == (words or said)
    assert not foreign_characters(said.replace("ё", "е"))


def test_numbers_without_words_are_refused() -> None:
    for function in (cardinal, ordinal):
        for number in (-1, LARGEST + 1):
            with pytest.raises(ValueError, match="only numbers from 0"):
                function(number)


@pytest.mark.parametrize(
    ("number", "case", "gender", "words"),
    [
        (0, "nomn", "masc", "нулевой"),
        (3, "loct", "masc", "третьем"),
        (3, "accs", "femn", "третью"),
        (3, "nomn", "plur", "третьи"),
        (7, "nomn", "neut", "седьмое"),
        (40, "gent", "masc", "сорокового"),
        (80, "nomn", "plur", "восьмидесятые"),
        (100, "datv", "femn", "сотой"),
        (300, "nomn", "masc", "трёхсотый"),
        (900, "nomn", "masc", "девятисотый"),
        (1000, "loct", "masc", "тысячном"),
        (1945, "gent", "masc", "тысяча девятьсот сорок пятого"),
        (2000, "loct", "masc", "двухтысячном"),
        (21_000, "nomn", "masc", "двадцатиоднотысячный"),
        (1_000_000, "nomn", "masc", "миллионный"),
    ],
)
def test_ordinals(number: int, case: str, gender: str, words: str) -> None:
    assert ordinal(number, case, gender) == words


# The ending that is written behind the hyphen: the last letter, or the last two where a consonant stands before it.
_WRITTEN = {
    "masc": ["й", "го", "му", "й", "м", "м"],
    "femn": ["я", "й", "й", "ю", "й", "й"],
    "neut": ["е", "го", "му", "е", "м", "м"],
    "plur": ["е", "х", "м", "е", "ми", "х"],
}


def test_ordinals_are_among_what_their_ending_may_stand_for() -> None:
    for number, gender, place in itertools.product([*range(1, 130), 2000, 1999], _WRITTEN, range(6)):
        ending, form = _WRITTEN[gender][place], ordinal(number, CASES[place], gender)
        few_or_seven = number % 100 not in (11, 12, 13, 14, 17, 18) and number % 10 in (2, 3, 4, 7, 8)
        if ending in ("х", "ми") and few_or_seven:
            continue  # двух, семи
        if (number % 10 == 3 and number % 100 != 13) and (gender, place) == ("plur", 0):
            assert form.endswith("третьи")  # is written «3-и»
        elif form.endswith("третьи"):
            continue
        else:
            assert form in {words for words, _, _ in forms_with_ending(number, ending)}


def test_what_ordinals_with_endings_say() -> None:
    """Every ending of which only one form exists says that form, whatever the number."""
    for number in [*range(1, 130), 1000, 1999, 2000]:
        for ending, case, gender in (("го", "gent", "masc"), ("му", "datv", "masc"), ("я", "nomn", "femn")):
            assert spoken(f"{number}-{ending}").text == ordinal(number, case, gender).replace("ё", "е")
        assert spoken(f"{number}-й").text == ordinal(number).replace("ё", "е")
        assert spoken(f"на {number}-м этаже").text == f"на {ordinal(number, 'loct')} этаже".replace("ё", "е")


def test_roman_numerals() -> None:
    assert [roman(numeral) for numeral in ("i", "iv", "ix", "xiv", "xl", "xc", "cdxliv", "mcmxcix")] == [
        *(1, 4, 9, 14, 40, 90, 444, 1999),
    ]
    assert [roman(numeral) for numeral in ("", "iiii", "vx", "ic", "mmmm", "abc")] == [None] * 6


def test_beginnings_of_words() -> None:
    assert [compound_stem(number) for number in (1, 2, 21, 40, 90, 100, 250, 1000)] == [
        *("одно", "двух", "двадцатиодно", "сорока", "девяносто", "сто", "двухсотпятидесяти", "тысяче"),
    ]


# ---------------------------------------------------------------------------------------------------------------- rows


def test_rows_keep_what_they_hold() -> None:
    rows = [
        {"audio_filepath": "a.wav", "text": "5 минут, BMW", "duration": 1.0, "speaker": "anna"},
        {"audio_filepath": "b.wav", "text": "Ёлка.", "duration": 2.0},
    ]
    (first, notes), (second, none) = spoken_rows(rows)
    assert first == {**rows[0], "text": "пять минут, bmw", "written": "5 минут, BMW", "spoken_version": SPOKEN_VERSION}
    assert [note.what for note in notes] == ["BMW"]
    assert (second, none) == ({**rows[1], "text": "елка", "spoken_version": SPOKEN_VERSION}, ())
    assert rows[0]["text"] == "5 минут, BMW"
    assert next(spoken_rows(rows[1:], keep_yo=True))[0]["text"] == "ёлка"


@pytest.mark.parametrize("row", [{"duration": 1.0}, {"text": None}, {"text": 5}])
def test_rows_without_text_are_refused(row: dict[str, object]) -> None:
    with pytest.raises(ManifestError, match='row 2: "text" is missing or no string'):
        list(spoken_rows([{"text": "да"}, row]))
